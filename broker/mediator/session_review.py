"""Sessions whose permit is gone: each rests on another entry now, or is void (I2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from broker.mediator.permit_rules import PermitRules
from broker.mediator.sessions import Sessions
from broker.tables.permits import LIST
from broker.tables.sessions import WITHOUT_PERMIT, Session


class SessionReview:
    """Looks at sessions again after each change of what permits them.

    Every method runs to its end in one turn of the reactor, right after the change is in force: no
    session outlives its permit, not even until the next message.
    """

    def __init__(self, rules: PermitRules, sessions: Sessions) -> None:
        self._rules = rules
        self._sessions = sessions

    def of_caller_or_callee(self, identifier: str) -> None:
        """Another may act as this terminal from now on: all of its sessions are void."""
        for session in self._sessions.all():
            if identifier in (session.caller, session.callee):
                self._sessions.void(session)

    def edited(self, owner: str, is_stricter: bool, is_concerned: Callable[[str], bool]) -> None:
        """The lists of a terminal have been edited.

        :param is_stricter: it rejects others than before, or has another policy
        :param is_concerned: whether the edits concern a permit entry
        """
        for session in self._sessions.of(owner):
            if is_stricter and self._is_overruled(session):
                self._sessions.void(session)
            elif is_concerned(session.permit_entry):
                self._review(session)

    def expired(self, owner: str, now: float) -> None:
        """Entries of a list may have expired, or the time of one that was used up has passed."""
        for session in self._sessions.of(owner):
            has_passed = session.until is not None and session.until <= now
            if has_passed or self._rules.table.has_expired(owner, session.permit_entry, now):
                self._review(session)

    def forgotten(self, entry: str) -> None:
        """An identifier or a group is off all lists; an identifier's own sessions are void."""
        for session in self._sessions.all():
            if entry in (session.caller, session.callee):
                self._sessions.void(session)
            elif session.permit_entry == entry:
                self._review(session)

    def left_group(self, group: str, former_members: Iterable[str]) -> None:
        """Some are not in a group now, and may have been permitted as its members."""
        gone = frozenset(former_members)
        if not gone:
            return
        for session in self._sessions.all():
            if session.permit_entry == group and session.caller in gone:
                self._review(session)

    def renamed(self) -> None:
        """An identifier has one more group or name, by which a callee may reject it."""
        if not self._rules.table.rejected:
            return
        for session in self._sessions.all():
            if self._rules.rejects(session.callee, session.caller):
                self._sessions.void(session)

    def _review(self, session: Session) -> None:
        """What a session rests on is gone: it rests on another entry, or is void."""
        if session.permit_entry in WITHOUT_PERMIT and not self._is_overruled(session):
            return  # it never rested on a list, so no entry of one can be gone
        entry = self._rules.permit_entry(session.callee, session.caller)
        if entry is None:
            self._sessions.void(session)
        else:
            session.permit_entry, session.until = entry, None

    def _is_overruled(self, session: Session) -> bool:
        """Whether a session is void whatever the list says."""
        rules = self._rules
        rests_on_list = session.permit_entry not in WITHOUT_PERMIT
        if rests_on_list and rules.table.policy(session.callee) != LIST:
            return True
        return rules.rejects(session.callee, session.caller)
