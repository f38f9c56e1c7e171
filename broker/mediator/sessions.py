"""The sessions granted here: replaced, begun, ended, and terminated with what they rest on."""

from __future__ import annotations

from typing import Final

from twisted.internet.interfaces import IReactorTime

from broker.mediator.connection import TerminalConnection
from broker.mediator.connections import ConnectionRegistry
from broker.messages.errors import TooManyRequests
from broker.messages.grammar import NOTIFY
from broker.messages.message import Message
from broker.messages.statements import TERMINATE
from broker.net.timers import DeadlineQueue
from broker.tables import sessions
from broker.tables.sessions import UNSPENT_SECONDS, Session, SessionTable

#: Seconds that a session may last (C8's lifetime: 60 minutes, as in fig. 4).
LIFETIME: Final = 3600


class Sessions:
    """Keeps the session table to its deadlines, and tells both sides when a session is void.

    :ivar clock: the clock of these deadlines
    """

    def __init__(self, clock: IReactorTime, connections: ConnectionRegistry) -> None:
        self.clock = clock
        self._connections = connections
        self._table = SessionTable()
        self._unspent: DeadlineQueue[Session] = DeadlineQueue(
            clock, UNSPENT_SECONDS, self._table.expire
        )
        self._begun: DeadlineQueue[Session] = DeadlineQueue(clock, LIFETIME, self._table.expire)
        # Terminations of begun sessions whose party holds no connection: it is told when it comes
        # back, within the session's lifetime. After that it has ended the session by itself.
        self._undelivered: dict[str, list[str]] = {}  # session identifiers, by party
        self._undelivered_expiry: DeadlineQueue[tuple[str, str]] = DeadlineQueue(
            clock, LIFETIME, self._forget_undelivered
        )

    def check_session_quota(self, caller: str, callee: str) -> None:
        """See that the caller may be granted a session.

        :raises TooManyRequests: it has too many unspent ones
        """
        if not self._table.has_room(caller, callee):
            raise TooManyRequests

    def granted(self, identifier: str, caller: str, callee: str, permit_entry: str) -> None:
        """A session is granted; the pair's unspent one is void, as the callee knows by itself.

        :param permit_entry: the entry of the callee's list that permits it, or what stands in its
            place (``Session.permit_entry``)
        """
        session, replaced = self._table.grant(identifier, caller, callee, permit_entry)
        if replaced is not None:
            self._unspent.discard(replaced)
        self._unspent.add(session)

    def began(self, connection: TerminalConnection, identifier: str) -> None:
        """The callee reports that the caller came: the lifetime of the session starts."""
        session = self._table.find(identifier, connection.identifier)
        if session is None or session.callee != connection.identifier:
            # It was terminated, perhaps while this report was on its way: it must not go on.
            connection.stream.send(terminate(identifier))
        elif not self._table.begin(session):
            self.void(session)
        else:
            self._unspent.discard(session)
            self._begun.add(session)

    def ended(self, connection: TerminalConnection, identifier: str, how: str) -> None:
        """One side reports that a session is over.

        The caller's word alone does not end it here: were that a lie, a permit that is withdrawn
        later would not end the session at the callee (I2). The callee's word on a session
        that has not begun is passed on to the caller at once: it need not wait (D7).
        """
        session = self._table.find(identifier, connection.identifier)
        if session is not None and session.callee == connection.identifier:
            begun = session.begun
            self._close(session, sessions.END)
            if not begun:
                for other in self._connections.connections(session.caller):
                    other.stream.send(terminate(identifier, how))

    def of(self, callee: str) -> list[Session]:
        """All sessions of a callee, which rest on its list; the oldest first."""
        return self._table.of(callee)

    def all(self) -> list[Session]:
        """Every session, the oldest first."""
        return self._table.all()

    def void(self, session: Session) -> None:
        """What a session rested on is gone: it is terminated, and both sides are told (I2)."""
        begun = session.begun
        self._close(session, sessions.TERMINATE)
        for party in (session.callee, session.caller):
            connections = self._connections.connections(party)
            for connection in connections:
                connection.stream.send(terminate(session.identifier))
            if not connections and begun:
                self._undelivered.setdefault(party, []).append(session.identifier)
                self._undelivered_expiry.add((party, session.identifier))

    def __len__(self) -> int:
        return len(self._table)

    def stop(self) -> None:
        """Leave no timer behind."""
        self._unspent.stop()
        self._begun.stop()
        self._undelivered_expiry.stop()

    def deliver(self, connection: TerminalConnection, identifier: str) -> None:
        """A terminal is back: tell it which of its sessions were terminated while it was away."""
        for session in self._undelivered.pop(identifier, ()):
            self._undelivered_expiry.discard((identifier, session))
            connection.stream.send(terminate(session))

    def _forget_undelivered(self, undelivered: tuple[str, str]) -> None:
        party, session = undelivered
        waiting = self._undelivered[party]
        waiting.remove(session)
        if not waiting:
            del self._undelivered[party]

    def _close(self, session: Session, event: str) -> None:
        self._unspent.discard(session)
        self._begun.discard(session)
        self._table.close(session, event)


def terminate(session: str, how: str | None = None) -> Message:
    """The message that tells a terminal that a session is void.

    :param how: how it has ended, in the callee's word
    """
    fields = {"Session": session} if how is None else {"Session": session, "End": how}
    return Message.of(NOTIFY, {**fields, "": TERMINATE})
