"""Registration: permits (fig. 3) and the present address (¶77), both in force or neither."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from dataclasses import replace
from math import inf
from typing import Final, NamedTuple

from broker.mediator.aliases import Aliases
from broker.mediator.connection import TerminalConnection, canonical_identifier_field
from broker.mediator.context import MediatorContext
from broker.mediator.registration_plan import RegistrationPlan
from broker.messages.errors import CalleeNotFound
from broker.messages.statements import REGISTRATION_COMPLETED
from broker.net.dialogue import Request
from broker.tables.locations import Binding, Contact

#: Bytes of a registration key, and of the random part of its Key ID.
_KEY_BYTES: Final = 32
_KEY_ID_BYTES: Final = 16


class IssuedKey(NamedTuple):
    """A registration key on its way to its terminal; never in a log, nor in its ``repr`` (I18).

    :ivar key_id: its name
    :ivar secret: the key itself
    :ivar port: the port at which its terminal takes calls
    """

    key_id: str
    secret: bytes
    port: int

    def __repr__(self) -> str:
        return f"<IssuedKey {self.key_id}>"


class RegistrationHandler:
    """Serves registrations: checks all of one, makes it durable, puts it in force, and answers."""

    def __init__(self, context: MediatorContext, aliases: Aliases) -> None:
        self._context = context
        self._aliases = aliases
        self._permits = context.permits
        self._resolver = context.resolver
        self._connections = context.connections
        self._now = context.clock.seconds

    async def register(
        self, peer: TerminalConnection, request: Request, token: str | None = None
    ) -> None:
        """Fig. 10.

        :param token: a new resume token, where this registration has logged the terminal in
        :raises RegistrationFailed: nothing has changed (A5)
        """
        plan = RegistrationPlan(self._context, peer, request, token)
        name = request.message.fields.get("Name")
        is_new = name is not None and await self._aliases.take(plan.identifier, name)
        try:
            await self._in_turn(plan)
        except BaseException:  # cancelled too: a name that no registration stands for is free
            if name is not None and is_new:
                self._aliases.give_back(plan.identifier, name)
            raise
        self._context.counts["registrations"] += 1

    async def renew(self, identifier: str, peer: TerminalConnection) -> None:
        """A terminal is reached over an older connection again: register the address of that."""
        if peer.address is not None:
            peer.address = replace(peer.address, registered=self._now())
            await self._resolver.register(identifier, peer.address)

    async def _in_turn(self, plan: RegistrationPlan) -> None:
        """Apply a registration, after those before it that change the same lists."""
        permits, identifier = self._permits, plan.identifier
        if not plan.edits and not permits.is_changing(identifier):
            await self._apply(plan)
            return
        await permits.acquire(identifier)
        try:
            if plan.contact is not None:  # its age counts from now, not from before the wait
                plan.contact = replace(plan.contact, registered=self._now())
            await self._apply(plan)
        finally:
            permits.release(identifier)

    async def _apply(self, plan: RegistrationPlan) -> None:
        """Make a registration durable, put it in force, and answer."""
        contact, edits = plan.contact, plan.edits
        key = await self._issue_key(plan) if plan.wants_key else None
        try:
            if contact is None:
                if edits:
                    await self._permits.edit(plan.identifier, edits, plan.change)
            elif edits:
                await self._edit_and_locate(plan, contact)
            else:
                await self._locate(plan.identifier, contact)
        except Exception:
            if key is not None:  # no terminal ever learns it
                self._resolver.release_key(plan.identifier, key.key_id)
            raise
        if contact is not None or key is not None:
            await self._activate(plan, key)
        # While the list is locked, so that answers come in the order of the changes.
        plan.request.reply(REGISTRATION_COMPLETED, self._answer(plan, key))

    def _answer(self, plan: RegistrationPlan, key: IssuedKey | None) -> dict[str, str] | None:
        """The fields of the answer; a bare one has none."""
        if plan.request.bare:
            return None
        fields = {"Epoch": self._context.epoch}
        if plan.token is not None:
            fields["Token"] = plan.token
        fields.update(canonical_identifier_field(plan.peer, plan.request))
        if key is not None:
            fields["Key ID"] = key.key_id
            fields["Registration Key"] = key.secret.hex()
            fields["Interval"] = str(self._context.settings.udp_interval)
        return fields

    # Keys for registration by UDP.

    async def _issue_key(self, plan: RegistrationPlan) -> IssuedKey:
        """Draw a key. The resolver has it first: it is valid once the terminal has it (D1)."""
        drawn = self._context.randomness(_KEY_BYTES + _KEY_ID_BYTES)
        key_id = urlsafe_b64encode(drawn[_KEY_BYTES:]).decode("ascii").rstrip("=")
        key = IssuedKey(f"K{key_id}", drawn[:_KEY_BYTES], plan.port)
        await self._resolver.add_key(
            plan.identifier, key.key_id, key.secret, key.port, plan.expires
        )
        return key

    def _keep_key(self, peer: TerminalConnection, key: IssuedKey) -> None:
        """The terminal gets a key: the one it had over the same connection begins to expire."""
        before, peer.key = peer.key, key.key_id
        peer.port = key.port
        if before is not None:
            self._resolver.release_key(peer.identifier, before)

    # Addresses.

    async def _locate(self, identifier: str, contact: Contact) -> None:
        """Register an address at the resolver (A16), or withdraw it there."""
        if contact.expires:
            await self._resolver.register(identifier, contact)
        else:
            await self._resolver.withdraw(identifier)

    async def _edit_and_locate(self, plan: RegistrationPlan, contact: Contact) -> None:
        """Both or neither. The resolver comes first, since what it does can be taken back."""
        identifier = plan.identifier
        try:
            # As it was registered, a domain name unresolved: that is what may be restored.
            before: Binding | None = await self._resolver.registered_binding(identifier)
        except CalleeNotFound:
            before = None
        await self._locate(identifier, contact)
        try:
            await self._permits.edit(identifier, plan.edits, plan.change)
        except Exception:
            await self._restore(identifier, before)
            raise

    async def _restore(self, identifier: str, before: Binding | None) -> None:
        """Register the address that was there before, for the time that it had left."""
        if before is None:
            await self._resolver.withdraw(identifier)
            return
        now = self._now()
        contact = replace(before.contact, registered=now)
        if before.until != inf:
            contact = replace(contact, expires=max(0, int(before.until - now)))
        await self._resolver.register(identifier, contact)
        active = self._connections.active(identifier)
        if active is not None and active.address is before.contact:
            active.address = contact
        else:  # no connection holds it now, so it expires like one whose connection has gone
            self._resolver.release(identifier, contact)

    async def _activate(self, plan: RegistrationPlan, key: IssuedKey | None) -> None:
        """Reach the terminal over this connection from now on, or over none if it withdraws."""
        peer, identifier, contact = plan.peer, plan.identifier, plan.contact
        # First of all: a call that waits for the terminal goes on within ``registered``.
        peer.offer = plan.offer
        if contact is not None and not contact.expires:
            self._connections.withdrawn(identifier)
            self._resolver.drop_keys(identifier)
        elif peer.stream.connected:
            if key is not None:
                self._keep_key(peer, key)
            self._connections.registered(peer, contact)
            self._context.sessions.deliver(peer, identifier)
        else:
            await self._lose(plan, key)

    async def _lose(self, plan: RegistrationPlan, key: IssuedKey | None) -> None:
        """The connection went while it registered: do what follows if it goes a moment later."""
        identifier = plan.identifier
        if key is not None:
            self._resolver.release_key(identifier, key.key_id)
        if plan.contact is not None:
            self._resolver.release(identifier, plan.contact)
            active = self._connections.active(identifier)
            if active is not None:
                await self.renew(identifier, active)
