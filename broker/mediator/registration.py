"""Registering: permits (fig. 3) and the present address (¶77), applied whole or not at all."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from math import inf
from typing import Final, NamedTuple

from broker.mediator.aliases import Aliases
from broker.mediator.auth.login import hidden
from broker.mediator.candidates import offer
from broker.mediator.connection import TerminalConnection, canonical_identifier_field
from broker.mediator.context import MediatorContext
from broker.messages.errors import CalleeNotFound, RegistrationFailed
from broker.messages.grammar import DEFAULT_EXPIRES, DEFAULT_PORT
from broker.messages.message import Message
from broker.messages.statements import REGISTRATION_COMPLETED
from broker.net.dialogue import Request
from broker.net.peer_address import local_host_of, remote_host_of
from broker.tables.address_policy import validate_contact
from broker.tables.locations import AddressRefused, Binding, CandidateOffer, Contact
from broker.tables.permits import LimitedRejection, ListTooLong

#: Fields of the protocol that this server does not serve: better refused than ignored.
_NOT_OFFERED: Final = ("Control", "Public Key", "Role")
#: Fields of a registration that changes more than lists, before those.
_NOT_ALONE: Final = frozenset(("Name", "UDP"))
#: Fields by which further ways to a terminal are offered.
_OFFERS: Final = frozenset(("Local", "Seen"))
#: Bytes of a registration key, and of what its name is drawn from.
_KEY_BYTES: Final = 32
_NAME_BYTES: Final = 16


class GivenKey(NamedTuple):
    """A registration key on its way to its terminal; never in a log, nor in its own ``repr`` (I18).

    :ivar name: its Key ID
    :ivar secret: the key itself
    :ivar port: the port at which its terminal takes calls
    """

    name: str
    secret: bytes
    port: int

    def __repr__(self) -> str:
        return f"<GivenKey {self.name}>"


class Lists(NamedTuple):
    """What a registration says of who may reach its terminal; nothing at all, it may be.

    :ivar accept: edits of the list of those who may
    :ivar reject: edits of the list of those who may not
    :ivar policy: how the terminal's consent is had from now on
    """

    accept: Sequence[str]
    reject: Sequence[str]
    policy: str | None

    def __bool__(self) -> bool:
        return bool(self.accept or self.reject or self.policy)


class Registration:
    """Takes registrations in."""

    def __init__(self, context: MediatorContext, aliases: Aliases) -> None:
        self._permits = context.permits
        self._resolver = context.resolver
        self._connections = context.connections
        self._aliases = aliases
        self._now = context.clock.seconds
        self._context = context
        self._settings = context.settings

    async def register(
        self, peer: TerminalConnection, request: Request, token: str | None = None
    ) -> None:
        """Fig. 10: check everything, make it durable, put it in force, and only then say so.

        :param token: a new resume token, where this registration has logged the terminal in
        :raises RegistrationFailed: nothing has changed (A5)
        """
        message = request.message
        identifier = peer.identifier
        for name in _NOT_OFFERED:
            if name in message.fields:
                raise RegistrationFailed(f"{name} is not offered by this server")
        lists = _lists(message)
        try:
            address = self._address(peer, message.fields)
            offered = self._offer(peer, message.fields)
            if "UDP" in message.fields:
                self._check_udp(peer, request)
            # Where the edit comes at once, and alone, it checks by itself.
            alone = address is None and _NOT_ALONE.isdisjoint(message.fields)
            if lists and (not alone or self._permits.changing(identifier)):
                self._permits.check(identifier, lists.accept, lists.reject)
        except (ListTooLong, LimitedRejection, AddressRefused) as error:
            raise RegistrationFailed(str(error)) from None
        called = message.fields.get("Name")
        taken = called is not None and await self._aliases.take(identifier, called)
        try:
            await self._in_turn(peer, request, lists, address, offered, token)
        except BaseException:
            if called is not None and taken:
                self._aliases.give_back(identifier, called)
            raise

    async def _in_turn(
        self,
        peer: TerminalConnection,
        request: Request,
        lists: Lists,
        address: Contact | None,
        offered: CandidateOffer | None,
        token: str | None,
    ) -> None:
        identifier = peer.identifier
        if lists or self._permits.changing(identifier):
            await self._permits.begin(identifier)
            try:
                if address is not None:
                    address = replace(address, registered=self._now())
                await self._change(peer, request, lists, address, offered, token)
            finally:
                self._permits.end(identifier)
        else:
            await self._change(peer, request, lists, address, offered, token)

    # Keys for registration by UDP.

    def _check_udp(self, peer: TerminalConnection, request: Request) -> None:
        """Whether a key may be given out (D1)."""
        fields = request.message.fields
        if request.bare:
            raise RegistrationFailed("UDP goes with a Transaction, in whose answer the key comes")
        if not self._settings.allow_clear_text and not hidden(peer):
            raise RegistrationFailed("no key is given out in clear text", code=403)
        if fields.get("Expires") == "0":
            raise RegistrationFailed("what is withdrawn is not registered by UDP")
        if int(fields.get("Port", DEFAULT_PORT)) in self._settings.own_ports:
            raise AddressRefused("the address is the server's own")

    async def _give_key(self, identifier: str, fields: dict[str, str]) -> GivenKey:
        """Draw a key, and hand it to the resolver first: it is told once it is good (D1)."""
        drawn = self._context.randomness(_KEY_BYTES + _NAME_BYTES)
        name = urlsafe_b64encode(drawn[_KEY_BYTES:]).decode("ascii").rstrip("=")
        port = int(fields.get("Port", DEFAULT_PORT))
        given = GivenKey(f"K{name}", drawn[:_KEY_BYTES], port)
        expires = int(fields.get("Expires", DEFAULT_EXPIRES))
        await self._resolver.add_key(identifier, given.name, given.secret, port, expires)
        return given

    def _took_key(self, peer: TerminalConnection, identifier: str, given: GivenKey) -> None:
        """A key goes to its terminal; one that it got over the same connection is no more held."""
        before, peer.key = peer.key, given.name
        peer.port = given.port
        if before is not None:
            self._resolver.release_key(identifier, before)

    # Addresses.

    async def renew(self, identifier: str, holder: TerminalConnection) -> None:
        """Register anew the address of the connection over which a terminal is reached again."""
        if holder.address is not None:
            holder.address = replace(holder.address, registered=self._now())
            await self._resolver.register(identifier, holder.address)

    async def _change(
        self,
        peer: TerminalConnection,
        request: Request,
        lists: Lists,
        address: Contact | None,
        offered: CandidateOffer | None,
        token: str | None,
    ) -> None:
        identifier = peer.identifier
        fields = request.message.fields
        given = await self._give_key(identifier, fields) if "UDP" in fields else None
        try:
            if address is None:
                if lists:
                    await self._edit(identifier, lists)
            elif lists:
                await self._edit_and_place(identifier, lists, address)
            else:
                await self._place(identifier, address)
        except Exception:
            if given is not None:  # nobody ever knows it
                self._resolver.release_key(identifier, given.name)
            raise
        if address is not None or given is not None:
            await self._reached(peer, identifier, address, given, offered)
        told = None
        if not request.bare:
            told = {
                "Epoch": self._context.epoch,
                **canonical_identifier_field(peer, request),
            }
        if told is not None and token is not None:
            told["Token"] = token
        if told is not None and given is not None:
            told["Key ID"] = given.name
            told["Registration Key"] = given.secret.hex()
            told["Interval"] = str(self._settings.udp_interval)
        request.reply(REGISTRATION_COMPLETED, told)
        self._context.counts["registrations"] += 1

    def _edit(self, identifier: str, lists: Lists) -> Awaitable[None]:
        accept, reject, policy = lists
        return self._permits.edit(identifier, accept, reject=reject, policy=policy)

    async def _edit_and_place(self, identifier: str, lists: Lists, address: Contact) -> None:
        """Both or neither: the resolver first, since its part can be taken back."""
        try:
            before: Binding | None = await self._resolver.kept(identifier)
        except CalleeNotFound:
            before = None
        await self._place(identifier, address)
        try:
            await self._edit(identifier, lists)
        except Exception:
            await self._put_back(identifier, before)
            raise

    async def _put_back(self, identifier: str, before: Binding | None) -> None:
        """Have the address that stood before stand again, for as long as it would have."""
        if before is None:
            await self._resolver.withdraw(identifier)
            return
        now = self._now()
        again = replace(before.contact, registered=now)
        if before.until != inf:
            again = replace(again, expires=max(0, int(before.until - now)))
        await self._resolver.register(identifier, again)
        holder = self._connections.active(identifier)
        if holder is not None and holder.address is before.contact:
            holder.address = again
        else:
            self._resolver.release(identifier, again)

    async def _reached(
        self,
        peer: TerminalConnection,
        identifier: str,
        address: Contact | None,
        given: GivenKey | None,
        offered: CandidateOffer | None,
    ) -> None:
        peer.offer = offered  # first: whoever waits for the terminal goes on as it is reached
        if address is not None and not address.expires:
            self._connections.withdrawn(identifier)
            self._resolver.drop_keys(identifier)
            return
        if peer.stream.connected:
            if given is not None:
                self._took_key(peer, identifier, given)
            self._connections.registered(peer, address)
            self._context.sessions.deliver(peer, identifier)
            return
        # As if it had gone a moment later: reach returns.
        if given is not None:
            self._resolver.release_key(identifier, given.name)
        if address is not None:
            self._resolver.release(identifier, address)
            holder = self._connections.active(identifier)
            if holder is not None:
                await self.renew(identifier, holder)

    def _offer(self, peer: TerminalConnection, fields: dict[str, str]) -> CandidateOffer | None:
        if "Address" not in fields and "UDP" not in fields and not _OFFERS.isdisjoint(fields):
            raise AddressRefused("Local and Seen go with an Address, or with UDP")
        return offer(peer, fields, self._now(), self._settings.own_ports)

    def _address(self, peer: TerminalConnection, fields: dict[str, str]) -> Contact | None:
        host = fields.get("Address")
        expires = int(fields.get("Expires", DEFAULT_EXPIRES))
        if host is None:
            if "UDP" in fields:
                return None  # it is where its datagrams come from
            if "Port" in fields or ("Expires" in fields and expires):
                raise AddressRefused("a Port or Expires goes with an Address")
            return None if expires else Contact("", 0, self._now(), 0)
        port = int(fields.get("Port", DEFAULT_PORT))
        admitted = validate_contact(
            host,
            port,
            source=remote_host_of(peer.stream),
            own=local_host_of(peer.stream),
            allowed=self._settings.allowed_networks,
            own_ports=self._settings.own_ports,
        )
        host, dialable, origin = admitted
        return Contact(host, port, self._now(), expires, dialable, origin)

    async def _place(self, identifier: str, address: Contact) -> None:
        """Pass an address on to the resolver (A16), or take it back there."""
        if address.expires:
            await self._resolver.register(identifier, address)
        else:
            await self._resolver.withdraw(identifier)


def _lists(message: Message) -> Lists:
    """What a message says of who may reach its terminal."""
    policy = message.fields.get("Policy")
    return Lists(message.edits("Accept"), message.edits("Reject"), policy)
