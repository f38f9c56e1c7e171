"""The call: fig. 12, with fig. 16 and 19 in it, one step a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectionLost

from broker.mediator.candidates import Candidates, between, waits_at
from broker.mediator.connection import Peer, canonical_identifier_field
from broker.mediator.connections import locate
from broker.mediator.consent import Consent
from broker.mediator.context import MediatorContext
from broker.mediator.permits import PermitUse
from broker.mediator.sessions import LIFETIME
from broker.messages.errors import (
    CalleeBusy,
    CalleeNotConnected,
    CalleeNotFound,
    PermissionDenied,
    Refused,
    ServiceUnavailable,
)
from broker.messages.grammar import NOTIFY, QUERY
from broker.messages.message import Message
from broker.messages.statements import (
    REQUEST_ACCEPTED,
    STATUS,
    STATUS_ACCEPTABLE,
    STATUS_BUSY,
)
from broker.net.dialogue import Request
from broker.tables.disclosures import CALLING, CONSENT, Disclosure
from broker.tables.grants import SessionCredentials, make_grant
from broker.tables.locations import Binding, Contact
from broker.tables.sessions import BY_CONSENT


class CallHandler:
    """Mediates calls: decides, and tells both sides."""

    def __init__(self, context: MediatorContext) -> None:
        self._own_ports = context.settings.own_ports
        self._clock = context.clock
        self._permits = context.permits
        self._resolver = context.resolver
        self._reach = context.connections
        self._sessions = context.sessions
        self._ledger = context.disclosures
        self._consent = Consent(context)
        self._randomness = context.randomness
        self._status = context.settings.ask_status

    async def call(self, caller: Peer, request: Request) -> None:
        """Mediate one call. Each refusal is raised; nothing has then been told of the callee."""
        begun = self._clock.seconds()
        fields = request.message.fields
        callee = self._permits.canonical(fields["Callee"])
        back = None
        if "Back" in fields:
            back = waits_at(caller, int(fields["Back"]), begun, self._own_ports)
        try:
            consented = self._permits.requires_consent(callee)
            if consented:
                await self._consent.ask(caller.identifier or "", callee)  # S2002–S2005
            await self._mediate(caller, callee, request, back, consented=consented)
        except PermissionDenied:
            if not request.done:  # it is, where the caller has gone
                await self._consent.wait_out(begun)
            raise

    async def _mediate(
        self,
        caller: Peer,
        callee: str,
        request: Request,
        back: Contact | None,
        *,
        consented: bool,
    ) -> None:
        """Fig. 12.

        :param back: where the caller waits for the callee, if it does
        :param consented: the callee has just said, of this request, that it accepts the caller
        """
        self._check_permit(caller, callee, consented)  # S1203
        asked = self._reach.turn
        use: PermitUse | None = None
        try:
            place, peer = await self._get(caller, callee, consented)
            if request.held is not None:  # decide when it can be told, and not before
                await request.turn()
            if self._permits.counted(callee, caller.identifier or ""):
                use = await self._permits.take(callee, caller.identifier or "")  # durable, I7
            seen = await self._look_for(caller) if consented else None  # S2006: both addresses
            while peer.turn > asked:  # it came, or registered anew, since it was looked up
                asked = self._reach.turn
                place = await locate(self._resolver, self._reach, callee)
            taken = None if use is None else use.entry
            ways = self._ways(caller, peer, request, back)
            self._ledger.check_room(1 + consented + len(ways))
            # I1, I2: in this turn
            basis = self._check_again(caller, callee, peer, place, taken, consented=consented)
            grant = make_grant(self._randomness)
            told = self._told(caller, callee, place, seen, grant, basis, ways)
            if self._ledger.first:
                await self._ledger.commit(*told.values())
                self._check_again(caller, callee, peer, place, basis, consented=consented)
                if peer.turn > asked:
                    raise CalleeNotConnected  # it moved: its new address was not recorded
                if not self._is_there(caller, seen):
                    told.pop("Caller", None)
            else:
                self._ledger.note(*told.values())
            self._sessions.granted(grant.session, caller.identifier or "", callee, basis)
            request.reply(REQUEST_ACCEPTED, more=True)  # S1206, fig. 5b
            peer.stream.send_early(_to_callee(caller, grant, told))  # S1208, S2009, fig. 5e
            credentials = _to_caller(told, grant)
            credentials.update(canonical_identifier_field(caller, request))
            request.reply("", credentials, code=200)  # S1210, S2008, fig. 5d
            if use is not None:
                use.spent()
        except (Refused, CancelledError):
            if request.held is not None and not request.done:
                await request.turn()
            # The cause, too, is for whom the callee accepts.
            self._check_permit(caller, callee, consented)
            raise
        finally:
            if use is not None:
                use.give_back()

    async def _get(self, caller: Peer, callee: str, consented: bool) -> tuple[Binding, Peer]:
        """Where a callee is, and the connection over which it said that it takes the call."""
        self._sessions.check_session_quota(caller.identifier or "", callee)
        place = await locate(self._resolver, self._reach, callee)  # S1204, S1205
        peer = await self._reach.get(callee, place.contact)  # S1901, S1902
        if self._status:
            self._check_permit(caller, callee, consented)  # what is refused is told to nobody (I5)
            peer = await self._ask_status(caller, callee, consented, place, peer)  # S1606–S1608
        return place, peer

    def _told(
        self,
        caller: Peer,
        callee: str,
        place: Binding,
        seen: _Seen | None,
        grant: SessionCredentials,
        basis: str,
        ways: Sequence[Candidates],
    ) -> dict[str, Disclosure]:
        """What the two are to be told of each other's addresses, by the fields that tell it."""
        identifier, session = caller.identifier or "", grant.session
        by = CONSENT if basis == BY_CONSENT else basis
        record = self._ledger.record
        told = {"Callee": record(callee, identifier, place.contact, session, by, LIFETIME)}
        if seen is not None and self._is_there(caller, seen):
            told["Caller"] = record(
                identifier, callee, seen.place.contact, session, CALLING, LIFETIME
            )
        for way in ways:
            whose = (callee, identifier) if way.callees else (identifier, callee)
            why = by if way.callees else CALLING
            told[way.field] = record(*whose, way.address, session, why, LIFETIME)
        return told

    def _ways(
        self, caller: Peer, peer: Peer, request: Request, back: Contact | None
    ) -> Sequence[Candidates]:
        """How else the two may reach each other, which each of them has offered."""
        if peer.offer is None and back is None:
            return ()
        return between(caller, peer, request.message.fields, back, self._clock.seconds())

    def _check_permit(self, caller: Peer, callee: str, consented: bool) -> str:
        """Give the entry of the callee's list that permits this, or refuse.

        :param consented: the callee has said yes, and is to have nothing against it since
        """
        identifier = caller.identifier or ""
        if consented:
            if not self._permits.requires_consent(callee) or self._permits.rejects(
                callee, identifier
            ):
                raise PermissionDenied
            return BY_CONSENT
        basis = self._permits.basis(callee, identifier)
        if basis is None:
            raise PermissionDenied
        return basis

    async def _look_for(self, caller: Peer) -> _Seen | None:
        """Where a caller is, which its callee is told (C7); ``None`` where nobody knows.

        What has been granted to it does not hang on that.
        """
        identifier = caller.identifier or ""
        holder = self._reach.held(identifier)
        turn = 0 if holder is None else holder.turn
        try:
            return _Seen(await locate(self._resolver, self._reach, identifier), holder, turn)
        except CalleeNotFound:
            return None

    def _is_there(self, caller: Peer, seen: _Seen | None) -> bool:
        """Whether a caller was looked up, and is still there (I10)."""
        if seen is None:
            return False
        holder = self._reach.held(caller.identifier or "")
        if holder is not seen.holder or (holder is not None and holder.turn != seen.turn):
            return False
        return seen.place.until > self._clock.seconds()

    async def _ask_status(
        self, caller: Peer, callee: str, consented: bool, place: Binding, peer: Peer
    ) -> Peer:
        """The connection over which it has answered, which may be one that it has made for that."""
        try:
            peer, answer = await self._reach.ask(
                callee,
                peer,
                place.contact,
                Message(QUERY, STATUS),
                lambda _: self._check_permit(caller, callee, consented),
            )
        except (ConnectionLost, CancelledError):
            raise CalleeNotConnected from None
        if answer.statement == STATUS_BUSY:
            raise CalleeBusy
        if answer.statement != STATUS_ACCEPTABLE:
            raise CalleeNotConnected  # an answer that says neither is none
        return peer

    def _check_again(
        self,
        caller: Peer,
        callee: str,
        peer: Peer,
        place: Binding,
        taken: str | None,
        *,
        consented: bool,
    ) -> str:
        """What was true before the callee was asked must be true as its address is told.

        :param taken: the entry that what has been made durable rests on, where anything has
        :return: the entry that permits it
        """
        basis = self._check_permit(caller, callee, consented)
        if taken is not None and taken != basis:
            if not self._permits.authorizes(callee, caller.identifier or "", taken):
                raise ServiceUnavailable  # another one permits it by now
            basis = taken
        self._sessions.check_session_quota(caller.identifier or "", callee)
        if self._reach.held(callee) is not peer or not peer.stream.connected:
            raise CalleeNotConnected
        if place.until <= self._clock.seconds():
            raise CalleeNotFound
        return basis


class _Seen(NamedTuple):
    """Where a caller was looked up.

    :ivar holder: the connection over which it was reached then, if it was
    :ivar turn: that connection's turn then
    """

    place: Binding
    holder: Peer | None
    turn: int


def _to_callee(caller: Peer, grant: SessionCredentials, told: Mapping[str, Disclosure]) -> Message:
    """What the ledger has recorded of where the caller is, if it has, and nothing else of it."""
    where: dict[str, str] = {}
    if len(told) > 1:
        shown = told.get("Caller")
        if shown is not None:
            where |= {"Caller Address": shown.host, "Caller Port": str(shown.port)}
        where |= _places(told, "Caller ")
    return Message.of(
        NOTIFY,
        {
            "Caller ID": caller.identifier or "",
            "Password": grant.password,
            "Encrypt Key": grant.key,
            **where,
            "Session": grant.session,
            "Expires": str(LIFETIME),
            "Reply Password": grant.reply_password,
        },
    )


def _to_caller(told: Mapping[str, Disclosure], grant: SessionCredentials) -> dict[str, str]:
    """What the ledger has recorded, and nothing else of where the callee is."""
    shown = told["Callee"]
    credentials = {
        "Callee Address": shown.host,
        "Password": grant.password,
        "Encrypt Key": grant.key,
        "Callee Port": str(shown.port),
        "Callee": shown.whose,
        "Session": shown.session,
        "Expires": str(shown.expires),
        "Reply Password": grant.reply_password,
    }
    if len(told) > 1:
        credentials |= _places(told, "Callee ")
    return credentials


def _places(told: Mapping[str, Disclosure], whose: str) -> dict[str, str]:
    """The further ways to one of the two, as they are told to the other."""
    return {
        field: f"{shown.host} {shown.port}"
        for field, shown in told.items()
        if field.startswith(whose)
    }
