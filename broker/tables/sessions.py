"""The sessions that stand on a permit: those granted and not yet begun, and those begun.

The server knows a session as (identifier, caller, callee) alone: what opens it is told to both
sides and kept nowhere (I20, I22).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: Seconds in which a session must begin; the mediator and the callee count them each for itself.
UNSPENT_SECONDS: Final = 30.0
#: Unspent sessions that one caller may have, each with another callee.
UNSPENT_A_CALLER: Final = 16
#: The basis of a session that rests on no list: the callee was asked, and said yes (C3).
CONSENT: Final = ""
#: The same: the caller knew the callee's call password (D7). No entry of a list holds a semicolon.
PASSWORD: Final = ";password"
#: Both.
NO_LIST: Final = frozenset((CONSENT, PASSWORD))
#: Sessions that one callee may have begun.
BEGUN_A_CALLEE: Final = 1000


@dataclass(eq=False, slots=True)
class Session:
    """One session.

    :ivar identifier: what both sides know it by
    :ivar basis: what it rests on: the entry of the callee's list that permits it, or ``CONSENT``,
        or ``PASSWORD``
    :ivar begun: the callee has said that the caller came
    :ivar until: when that entry would have expired had it not been used up, in seconds since 1970
    """

    identifier: str
    caller: str
    callee: str
    basis: str = ""
    begun: bool = False
    until: float | None = None


class SessionTable:
    """All sessions that a withdrawal could end (I2)."""

    __slots__ = ("_begun", "_callees", "_sessions", "_unspent", "_waiting")

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}
        self._callees: dict[str, dict[str, Session]] = {}  # each by its identifier
        self._waiting: dict[tuple[str, str], Session] = {}  # the unspent one of caller and callee
        self._unspent: dict[str, int] = {}  # by caller
        self._begun: dict[str, int] = {}  # by callee

    def room(self, caller: str, callee: str) -> bool:
        """Whether the caller may be granted one more; a new one for a pair replaces its unspent."""
        unspent = self._unspent.get(caller, 0)
        return unspent < UNSPENT_A_CALLER or (caller, callee) in self._waiting

    def grant(
        self, identifier: str, caller: str, callee: str, basis: str = ""
    ) -> tuple[Session, Session | None]:
        """Record a session, and drop the pair's unspent one, whose credentials it replaces.

        :return: the new session, and the one it replaces
        """
        pair = (caller, callee)
        replaced = self._waiting.get(pair)
        if replaced is not None:
            self.drop(replaced)
        session = Session(identifier, caller, callee, basis)
        self._sessions[identifier] = session
        self._waiting[pair] = session
        sessions = self._callees.get(callee)
        if sessions is None:
            self._callees[callee] = {identifier: session}
        else:
            sessions[identifier] = session
        self._unspent[caller] = self._unspent.get(caller, 0) + 1
        return session, replaced

    def begin(self, session: Session) -> bool:
        """The callee says that a session is spent and goes on.

        :return: whether there is room for it
        """
        if session.begun:
            return True
        if self._begun.get(session.callee, 0) >= BEGUN_A_CALLEE:
            return False
        self._spend(session)
        self._begun[session.callee] = self._begun.get(session.callee, 0) + 1
        session.begun = True
        return True

    def find(self, identifier: str, party: str) -> Session | None:
        """The session of that identifier, if this party is one of its two."""
        session = self._sessions.get(identifier)
        if session is None or party not in (session.caller, session.callee):
            return None
        return session

    def of(self, callee: str) -> list[Session]:
        """All sessions that rest on a callee's list, the oldest first."""
        return list(self._callees.get(callee, _NONE).values())

    def all(self) -> list[Session]:
        """Every session, the oldest first."""
        return list(self._sessions.values())

    def drop(self, session: Session) -> None:
        """Forget a session, if it is still known."""
        if self._sessions.pop(session.identifier, None) is None:
            return
        sessions = self._callees[session.callee]
        del sessions[session.identifier]
        if not sessions:
            del self._callees[session.callee]
        if session.begun:
            _less(self._begun, session.callee)
        else:
            self._spend(session)

    def __len__(self) -> int:
        return len(self._sessions)

    def _spend(self, session: Session) -> None:
        del self._waiting[session.caller, session.callee]
        _less(self._unspent, session.caller)


_NONE: Final[dict[str, Session]] = {}


def _less(counts: dict[str, int], name: str) -> None:
    if counts[name] == 1:
        del counts[name]
    else:
        counts[name] -= 1
