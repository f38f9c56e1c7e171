"""Registering: permits (fig. 3) and the present address (¶77), applied whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from math import inf
from typing import Final

from broker.interfaces import IResolver
from broker.mediator.peer import Peer
from broker.mediator.permits import Permits
from broker.mediator.reach import Reach
from broker.mediator.sessions import Sessions
from broker.tables.addresses import Address, AddressRefused, Network, Place, admit
from broker.tables.permits import ListTooLong
from broker.wire.conversation import Request
from broker.wire.grammar import DEFAULT_EXPIRES, DEFAULT_PORT
from broker.wire.refusals import CalleeNotFound, RegistrationFailed
from broker.wire.serving import arrived_at, came_from
from broker.wire.statements import REGISTRATION_COMPLETED

#: Fields of the protocol that this server does not serve: better refused than ignored.
_NOT_OFFERED: Final = ("Name", "Reject", "Control", "Policy", "UDP", "Public Key", "Role")


class Registration:
    """Takes registrations in.

    :param now: gives the time in seconds
    :param own_ports: the ports of this server, which no terminal is told to be at
    :param allowed: networks whose addresses may be registered from anywhere
    """

    def __init__(
        self,
        permits: Permits,
        epoch: str,
        resolver: IResolver,
        reach: Reach,
        sessions: Sessions,
        now: Callable[[], float],
        *,
        allowed: Collection[Network] = (),
        own_ports: Collection[int] = (),
    ) -> None:
        self._permits = permits
        self._epoch = epoch
        self._resolver = resolver
        self._reach = reach
        self._sessions = sessions
        self._now = now
        self._allowed = allowed
        self._own_ports = own_ports

    async def register(self, peer: Peer, request: Request) -> None:
        """Fig. 10: check everything, make it durable, put it in force, and only then say so.

        :raises RegistrationFailed: nothing has changed (A5)
        """
        message = request.message
        identifier = peer.identifier or ""
        for name in _NOT_OFFERED:
            if name in message.fields:
                raise RegistrationFailed(f"{name} is not offered by this server")
        edits = message.edits("Accept")
        try:
            if edits:
                self._permits.check(identifier, edits)
            address = self._address(peer, message.fields)
        except (ListTooLong, AddressRefused) as error:
            raise RegistrationFailed(str(error)) from None
        if edits or self._permits.changing(identifier):
            await self._permits.begin(identifier)
            try:
                if address is not None:
                    address = replace(address, registered=self._now())
                await self._change(peer, request, edits, address)
            finally:
                self._permits.end(identifier)
        else:
            await self._change(peer, request, edits, address)

    async def renew(self, identifier: str, holder: Peer) -> None:
        """Register anew the address of the connection over which a terminal is reached again."""
        if holder.address is not None:
            holder.address = replace(holder.address, registered=self._now())
            await self._resolver.register(identifier, holder.address)

    async def _change(
        self, peer: Peer, request: Request, edits: list[str], address: Address | None
    ) -> None:
        identifier = peer.identifier or ""
        if address is None:
            if edits:
                await self._permits.edit(identifier, edits)
        else:
            if edits:
                await self._edit_and_place(identifier, edits, address)
            else:
                await self._place(identifier, address)
            await self._reached(peer, identifier, address)
        told = None if request.bare else {"Epoch": self._epoch, **(peer.greeting or {})}
        request.reply(REGISTRATION_COMPLETED, told)

    async def _edit_and_place(self, identifier: str, edits: list[str], address: Address) -> None:
        """Both or neither: the resolver first, since its part can be taken back."""
        try:
            before: Place | None = await self._resolver.kept(identifier)
        except CalleeNotFound:
            before = None
        await self._place(identifier, address)
        try:
            await self._permits.edit(identifier, edits)
        except Exception:
            await self._put_back(identifier, before)
            raise

    async def _put_back(self, identifier: str, before: Place | None) -> None:
        """Have the address that stood before stand again, for as long as it would have."""
        if before is None:
            await self._resolver.withdraw(identifier)
            return
        now = self._now()
        again = replace(before.address, registered=now)
        if before.until != inf:
            again = replace(again, expires=max(0, int(before.until - now)))
        await self._resolver.register(identifier, again)
        holder = self._reach.held(identifier)
        if holder is not None and holder.address is before.address:
            holder.address = again
        else:
            self._resolver.release(identifier, again)

    async def _reached(self, peer: Peer, identifier: str, address: Address) -> None:
        if not address.expires:
            self._reach.withdrawn(identifier)
        elif peer.stream.connected:
            self._reach.registered(peer, address)
            self._sessions.deliver(peer, identifier)
        else:  # as if it had gone a moment later: reach returns
            self._resolver.release(identifier, address)
            holder = self._reach.held(identifier)
            if holder is not None:
                await self.renew(identifier, holder)

    def _address(self, peer: Peer, fields: dict[str, str]) -> Address | None:
        host = fields.get("Address")
        expires = int(fields.get("Expires", DEFAULT_EXPIRES))
        if host is None:
            if "Port" in fields or ("Expires" in fields and expires):
                raise AddressRefused("a Port or Expires goes with an Address")
            return None if expires else Address("", 0, self._now(), 0)
        port = int(fields.get("Port", DEFAULT_PORT))
        admitted = admit(
            host,
            port,
            source=came_from(peer.stream),
            own=arrived_at(peer.stream),
            allowed=self._allowed,
            own_ports=self._own_ports,
        )
        host, dialable, origin = admitted
        return Address(host, port, self._now(), expires, dialable, origin)

    async def _place(self, identifier: str, address: Address) -> None:
        """Pass an address on to the resolver (A16), or take it back there."""
        if address.expires:
            await self._resolver.register(identifier, address)
        else:
            await self._resolver.withdraw(identifier)
