"""The call: fig. 12, with fig. 16 and 19 in it, one step a line."""

from __future__ import annotations

from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IReactorTime

from broker.interfaces import IResolver
from broker.mediator.ledger import Ledger
from broker.mediator.peer import Peer
from broker.mediator.permits import Permits, Use
from broker.mediator.reach import Reach
from broker.mediator.sessions import LIFETIME, Sessions
from broker.tables.addresses import Place
from broker.tables.disclosures import Disclosure
from broker.tables.grants import Grant, Randomness, make_grant
from broker.wire.conversation import Request
from broker.wire.grammar import NOTIFY, QUERY
from broker.wire.message import Message
from broker.wire.refusals import (
    CalleeBusy,
    CalleeNotConnected,
    CalleeNotFound,
    PermissionDenied,
    Refused,
    ServiceUnavailable,
)
from broker.wire.statements import (
    REQUEST_ACCEPTED,
    STATUS,
    STATUS_ACCEPTABLE,
    STATUS_BUSY,
)


class Calls:
    """Mediates calls: decides, and tells both sides."""

    def __init__(
        self,
        clock: IReactorTime,
        permits: Permits,
        resolver: IResolver,
        reach: Reach,
        sessions: Sessions,
        ledger: Ledger,
        randomness: Randomness,
        *,
        status: bool = True,
    ) -> None:
        self._clock = clock
        self._permits = permits
        self._resolver = resolver
        self._reach = reach
        self._sessions = sessions
        self._ledger = ledger
        self._randomness = randomness
        self._status = status

    async def call(self, caller: Peer, request: Request) -> None:
        """Mediate one call. Each refusal is raised; nothing has then been told of the callee."""
        callee = self._permits.canonical(request.message.fields["Callee"])
        self._check_permit(caller, callee)  # S1203
        asked = self._reach.turn
        use: Use | None = None
        try:
            self._sessions.make_room(caller.identifier or "", callee)
            place = await self._resolver.lookup(callee)  # S1204, S1205
            peer = await self._reach.get(callee, place.address)  # S1901, S1902
            if self._status:
                self._check_permit(caller, callee)  # what is refused is told to nobody (I5)
                await self._ask_status(peer)  # S1606–S1608
            if request.held is not None:  # decide when it can be told, and not before
                await request.turn()
            if self._permits.counted(callee, caller.identifier or ""):
                use = await self._permits.take(callee, caller.identifier or "")  # durable, I7
            while peer.turn > asked:  # it came, or registered anew, since it was looked up
                asked = self._reach.turn
                place = await self._resolver.lookup(callee)
            taken = None if use is None else use.entry
            basis = self._check_again(caller, callee, peer, place, taken)  # I1, I2: in this turn
            grant = make_grant(self._randomness)
            told = self._ledger.record(
                callee, caller.identifier or "", place.address, grant.session, basis, LIFETIME
            )
            if self._ledger.first:
                await self._ledger.commit(told)
                self._check_again(caller, callee, peer, place, basis)
                if peer.turn > asked:
                    raise CalleeNotConnected  # it moved: its new address was not recorded
            else:
                self._ledger.note(told)
            self._sessions.granted(grant.session, caller.identifier or "", callee, basis)
            request.reply(REQUEST_ACCEPTED, more=True)  # S1206, fig. 5b
            peer.stream.send_early(_to_callee(caller, grant))  # S1208, fig. 5e
            request.reply("", _to_caller(told, grant), code=200)  # S1210, fig. 5d
            if use is not None:
                use.spent()
        except (Refused, CancelledError):
            if request.held is not None and not request.done:
                await request.turn()
            self._check_permit(caller, callee)  # the cause, too, is for whom the callee accepts
            raise
        finally:
            if use is not None:
                use.give_back()

    def _check_permit(self, caller: Peer, callee: str) -> str:
        """Give the entry of the callee's list that permits this, or refuse."""
        basis = self._permits.basis(callee, caller.identifier or "")
        if basis is None:
            raise PermissionDenied
        return basis

    async def _ask_status(self, callee: Peer) -> None:
        try:
            answer = await callee.ask(Message(QUERY, STATUS))
        except (ConnectionLost, CancelledError):
            raise CalleeNotConnected from None
        if answer.statement == STATUS_BUSY:
            raise CalleeBusy
        if answer.statement != STATUS_ACCEPTABLE:
            raise CalleeNotConnected  # an answer that says neither is none

    def _check_again(
        self, caller: Peer, callee: str, peer: Peer, place: Place, taken: str | None
    ) -> str:
        """What was true before the callee was asked must be true as its address is told.

        :param taken: the entry that what has been made durable rests on, where anything has
        :return: the entry that permits it
        """
        basis = self._check_permit(caller, callee)
        if taken is not None and taken != basis:
            if not self._permits.rests(callee, caller.identifier or "", taken):
                raise ServiceUnavailable  # another one permits it by now
            basis = taken
        self._ledger.check_room()
        self._sessions.make_room(caller.identifier or "", callee)
        if self._reach.held(callee) is not peer or not peer.stream.connected:
            raise CalleeNotConnected
        if place.until <= self._clock.seconds():
            raise CalleeNotFound
        return basis


def _to_callee(caller: Peer, grant: Grant) -> Message:
    return Message.of(
        NOTIFY,
        {
            "Caller ID": caller.identifier or "",
            "Password": grant.password,
            "Encrypt Key": grant.key,
            "Session": grant.session,
            "Expires": str(LIFETIME),
            "Reply Password": grant.reply_password,
        },
    )


def _to_caller(told: Disclosure, grant: Grant) -> dict[str, str]:
    """What the ledger has recorded, and nothing else of where the callee is."""
    return {
        "Callee Address": told.host,
        "Password": grant.password,
        "Encrypt Key": grant.key,
        "Callee Port": str(told.port),
        "Callee": told.whose,
        "Session": told.session,
        "Expires": str(told.expires),
        "Reply Password": grant.reply_password,
    }
