"""The sessions that rest on a permit: their states, and the table that finds them.

The server knows a session as (identifier, caller, callee) alone: the credentials that open it are
sent to both sides and kept nowhere (I20, I22).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from broker.states import StateTable

#: Seconds in which a session must begin; the mediator and the callee each count them.
UNSPENT_SECONDS: Final = 30.0
#: Unspent sessions that one caller may have, each with another callee.
UNSPENT_A_CALLER: Final = 16
#: Begun sessions that one callee may have.
BEGUN_A_CALLEE: Final = 1000

#: In place of a permit entry: the callee was asked for its consent and gave it (C3).
BY_CONSENT: Final = ""
#: In place of a permit entry: the caller knew the callee's call password (D7). No entry of a list
#: holds a semicolon.
BY_PASSWORD: Final = ";password"
#: The sessions that rest on no list.
WITHOUT_PERMIT: Final = frozenset((BY_CONSENT, BY_PASSWORD))

# States. Only the first two are in the table: what is over is forgotten.
UNSPENT: Final = "unspent"  # granted; the caller has not come to the callee yet
BEGUN: Final = "begun"  # the callee has reported that the caller came
ENDED: Final = "ended"  # the callee has reported that it is over
TERMINATED: Final = "terminated"  # what it rested on is gone; both sides are told (I2)
REPLACED: Final = "replaced"  # the pair has newer credentials; the callee knows that by itself (I7)
EXPIRED: Final = "expired"  # not begun in ``UNSPENT_SECONDS``, or begun for its whole lifetime

# Events.
BEGIN: Final = "begin"
END: Final = "end"
TERMINATE: Final = "terminate"
REPLACE: Final = "replace"
EXPIRE: Final = "expire"

#: The life of a session.
STATES: Final = StateTable(
    "session",
    UNSPENT,
    {
        UNSPENT: {
            BEGIN: BEGUN,
            END: ENDED,
            TERMINATE: TERMINATED,
            REPLACE: REPLACED,
            EXPIRE: EXPIRED,
        },
        # A begun session is not replaced: a call in progress goes on.
        BEGUN: {BEGIN: BEGUN, END: ENDED, TERMINATE: TERMINATED, EXPIRE: EXPIRED},
        ENDED: {},
        TERMINATED: {},
        REPLACED: {},
        EXPIRED: {},
    },
)


@dataclass(eq=False, slots=True)
class Session:
    """One session.

    :ivar identifier: what both sides know it by
    :ivar permit_entry: the entry of the callee's list that permits it; ``BY_CONSENT`` or
        ``BY_PASSWORD`` where it rests on no list
    :ivar state: one of ``STATES``
    :ivar until: when that entry would have expired had it not been used up, in seconds since 1970
    """

    identifier: str
    caller: str
    callee: str
    permit_entry: str = BY_CONSENT
    state: str = UNSPENT
    until: float | None = None

    @property
    def begun(self) -> bool:
        """Whether the callee has reported that the caller came, and it goes on."""
        return self.state == BEGUN

    def advance(self, event: str) -> None:
        """Go to the state that an event leads to (``STATES``)."""
        self.state = STATES.advance(self.state, event)


class SessionTable:
    """All sessions that a withdrawal could end (I2): the unspent and the begun ones."""

    __slots__ = ("_begun", "_callees", "_sessions", "_unspent", "_unspent_pairs")

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}
        self._callees: dict[str, dict[str, Session]] = {}  # by callee, and then by identifier
        self._unspent_pairs: dict[tuple[str, str], Session] = {}  # by caller and callee
        self._unspent: dict[str, int] = {}  # by caller
        self._begun: dict[str, int] = {}  # by callee

    def has_room(self, caller: str, callee: str) -> bool:
        """Whether the caller may be granted one more; a pair's new one replaces its unspent."""
        unspent = self._unspent.get(caller, 0)
        return unspent < UNSPENT_A_CALLER or (caller, callee) in self._unspent_pairs

    def grant(
        self, identifier: str, caller: str, callee: str, permit_entry: str = BY_CONSENT
    ) -> tuple[Session, Session | None]:
        """Record a session, and drop the pair's unspent one, whose credentials it replaces.

        :return: the new session, and the one that it replaces
        """
        pair = (caller, callee)
        replaced = self._unspent_pairs.get(pair)
        if replaced is not None:
            self.close(replaced, REPLACE)
        session = Session(identifier, caller, callee, permit_entry)
        self._sessions[identifier] = session
        self._unspent_pairs[pair] = session
        sessions = self._callees.get(callee)
        if sessions is None:
            self._callees[callee] = {identifier: session}
        else:
            sessions[identifier] = session
        self._unspent[caller] = self._unspent.get(caller, 0) + 1
        return session, replaced

    def begin(self, session: Session) -> bool:
        """The callee reports that the caller came; a second report changes nothing.

        :return: whether the callee may have one more begun session
        """
        if session.begun:
            return True
        if self._begun.get(session.callee, 0) >= BEGUN_A_CALLEE:
            return False
        session.advance(BEGIN)
        self._drop_unspent(session)
        self._begun[session.callee] = self._begun.get(session.callee, 0) + 1
        return True

    def find(self, identifier: str, party: str) -> Session | None:
        """The session of that identifier, if this party is its caller or its callee (I4)."""
        session = self._sessions.get(identifier)
        if session is None or party not in (session.caller, session.callee):
            return None
        return session

    def of(self, callee: str) -> list[Session]:
        """All sessions of a callee, which rest on its list; the oldest first."""
        return list(self._callees.get(callee, _NONE).values())

    def all(self) -> list[Session]:
        """Every session, the oldest first."""
        return list(self._sessions.values())

    def close(self, session: Session, event: str) -> None:
        """Forget a session; one that is forgotten already keeps its state.

        :param event: why: ``END``, ``TERMINATE``, ``REPLACE`` or ``EXPIRE``
        """
        if self._sessions.pop(session.identifier, None) is None:
            return
        sessions = self._callees[session.callee]
        del sessions[session.identifier]
        if not sessions:
            del self._callees[session.callee]
        if session.begun:
            _decrement(self._begun, session.callee)
        else:
            self._drop_unspent(session)
        session.advance(event)

    def expire(self, session: Session) -> None:
        """The deadline of a session's state has come."""
        self.close(session, EXPIRE)

    def __len__(self) -> int:
        return len(self._sessions)

    def _drop_unspent(self, session: Session) -> None:
        del self._unspent_pairs[session.caller, session.callee]
        _decrement(self._unspent, session.caller)


_NONE: Final[dict[str, Session]] = {}


def _decrement(counts: dict[str, int], name: str) -> None:
    if counts[name] == 1:
        del counts[name]  # a name without sessions leaves nothing behind (I15)
    else:
        counts[name] -= 1
