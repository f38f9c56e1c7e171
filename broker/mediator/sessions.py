"""The sessions granted here: replaced, begun, ended, and voided with the permit they rest on."""

from __future__ import annotations

from typing import Final

from twisted.internet.interfaces import IReactorTime

from broker.mediator.connection import Peer
from broker.mediator.connections import ConnectionRegistry
from broker.messages.errors import TooManyRequests
from broker.messages.grammar import NOTIFY
from broker.messages.message import Message
from broker.messages.statements import TERMINATE
from broker.net.timers import DeadlineQueue
from broker.tables.sessions import UNSPENT_SECONDS, Session, SessionTable

#: Seconds that a session may last (C8's lifetime: 60 minutes, as in fig. 4).
LIFETIME: Final = 3600


class Sessions:
    """Keeps the session table to its deadlines, and tells both sides when a session is void.

    :ivar clock: what these deadlines go by
    """

    def __init__(self, clock: IReactorTime, reach: ConnectionRegistry) -> None:
        self.clock = clock
        self._reach = reach
        self._table = SessionTable()
        self._unspent: DeadlineQueue[Session] = DeadlineQueue(
            clock, UNSPENT_SECONDS, self._table.drop
        )
        self._begun: DeadlineQueue[Session] = DeadlineQueue(clock, LIFETIME, self._table.drop)
        self._owed: DeadlineQueue[tuple[str, str]] = DeadlineQueue(
            clock, LIFETIME, self._written_off
        )
        self._owing: dict[str, list[str]] = {}

    def check_session_quota(self, caller: str, callee: str) -> None:
        """See that the caller may be granted a session.

        :raises TooManyRequests: it has too many unspent ones
        """
        if not self._table.room(caller, callee):
            raise TooManyRequests

    def granted(self, identifier: str, caller: str, callee: str, basis: str) -> None:
        """A session is granted; the pair's unspent one is void, as the callee knows by itself.

        :param basis: the entry of the callee's list that permits it
        """
        session, replaced = self._table.grant(identifier, caller, callee, basis)
        if replaced is not None:
            self._unspent.discard(replaced)
        self._unspent.add(session)

    def began(self, peer: Peer, identifier: str) -> None:
        """The callee reports that the caller came: the session lasts from now on."""
        session = self._table.find(identifier, peer.identifier or "")
        if session is None or session.callee != peer.identifier:
            # Voided meanwhile, perhaps with the report under way: it must not go on.
            peer.stream.send(terminate(identifier))
        elif not self._table.begin(session):
            self.void(session)
        else:
            self._unspent.discard(session)
            self._begun.add(session)

    def ended(self, peer: Peer, identifier: str, how: str) -> None:
        """One side reports that a session is over.

        The caller's word alone does not end it here: were that a lie, a permit that is withdrawn
        later would no longer end the session at the callee (I2). Of one that has not begun, the
        caller is told the callee's word at once: it need wait no longer (D7).
        """
        session = self._table.find(identifier, peer.identifier or "")
        if session is not None and session.callee == peer.identifier:
            self._forget(session)
            if not session.begun:
                for one in self._reach.connections(session.caller):
                    one.stream.send(terminate(identifier, how))

    def of(self, callee: str) -> list[Session]:
        """All sessions that rest on a callee's list, the oldest first."""
        return self._table.of(callee)

    def all(self) -> list[Session]:
        """Every session, the oldest first."""
        return self._table.all()

    def void(self, session: Session) -> None:
        """What a session rested on is gone: it goes no further, and both sides are told (I2)."""
        self._forget(session)
        for party in (session.callee, session.caller):
            peers = self._reach.connections(party)
            for peer in peers:
                peer.stream.send(terminate(session.identifier))
            if not peers and session.begun:
                self._owing.setdefault(party, []).append(session.identifier)
                self._owed.add((party, session.identifier))

    def __len__(self) -> int:
        return len(self._table)

    def stop(self) -> None:
        """Leave no timer behind."""
        self._unspent.stop()
        self._begun.stop()
        self._owed.stop()

    def deliver(self, peer: Peer, identifier: str) -> None:
        """A terminal is back: tell it which of its sessions were voided while it was away."""
        for session in self._owing.pop(identifier, ()):
            self._owed.discard((identifier, session))
            peer.stream.send(terminate(session))

    def _written_off(self, owed: tuple[str, str]) -> None:
        party, session = owed
        owing = self._owing[party]
        owing.remove(session)
        if not owing:
            del self._owing[party]

    def _forget(self, session: Session) -> None:
        self._unspent.discard(session)
        self._begun.discard(session)
        self._table.drop(session)


def terminate(session: str, how: str | None = None) -> Message:
    """What tells a terminal that a session is void.

    :param how: how it has ended, by its callee's word
    """
    told = {"Session": session} if how is None else {"Session": session, "End": how}
    return Message.of(NOTIFY, {**told, "": TERMINATE})
