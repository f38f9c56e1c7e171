"""Permits as the mediator keeps them: durable before they are in force, and voiding what falls."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Sequence
from typing import Any, Final

from twisted.internet.defer import Deferred, DeferredLock
from twisted.logger import Logger
from twisted.python.failure import Failure

from broker.interfaces import Change, IStore, State, StoreFailed
from broker.mediator.connection import TerminalConnection
from broker.mediator.revocation_log import RevocationLog
from broker.mediator.sessions import LIFETIME, Sessions
from broker.messages.errors import PermissionDenied, RegistrationFailed, ServiceUnavailable
from broker.messages.message import printable
from broker.net.dialogue import Request
from broker.net.expiry_timer import ExpiryTimer
from broker.net.keyed_lock import KeyedLock
from broker.tables.groups import GroupChange, GroupTable
from broker.tables.permits import (
    LIST,
    NEVER,
    NOBODY,
    PASSWORD,
    LimitedRejection,
    ListTooLong,
    PermitChange,
    PermitTable,
    as_edits,
    withdrawn,
)
from broker.tables.sessions import WITHOUT_PERMIT, Session

#: Seconds after which the store is asked again to drop what has expired, where it could not.
AGAIN_SECONDS: Final = 60.0


class Permits:
    """Who accepts whom, and all that changes it.

    A list is changed by whoever has its turn. What holds the turns of several lists is the
    operator's, one at a time, so that no two wait for each other.

    :ivar table: the lists in force
    :ivar groups: the groups in force
    :ivar canonical: gives the identifier that a name stands for; any other text as it is
    """

    log = Logger()

    def __init__(
        self,
        state: State,
        store: IStore,
        sessions: Sessions,
        wall: Callable[[], float],
        *,
        canonical: Callable[[str], str] = str,
        names: Callable[[str], Collection[str]] = lambda _: (),
    ) -> None:
        """
        :param wall: the time in seconds since 1970, which goes on as the clock of the sessions does
        :param names: gives what else an identifier is called
        """
        self.table = PermitTable(state.permits)
        self.groups = GroupTable(state.groups)
        self.canonical = canonical
        self._names = names
        self._store = store
        self._sessions = sessions
        self._wall = wall
        self._lists = self.table.lists
        self._turns = KeyedLock()
        self._operator = DeferredLock()
        self._expiries = ExpiryTimer(sessions.clock, wall, self._came_due)
        self._fallen = RevocationLog(sessions.clock)
        for change in state.permits:
            if change.limits:
                self._expiries.set(change.owner, self.table.expires(change.owner))

    # Who is permitted.

    def basis(self, callee: str, caller: str) -> str | None:
        """The entry of the callee's list that permits the caller; ``None`` where none does.

        No list does while its owner is asked each time. The same work whether or not the callee
        exists (I6).
        """
        if self._overrules(callee, caller):
            return None
        if self._lists.get(callee, NOBODY).get(caller, NEVER) is None:
            return caller  # by name and without a limit, as most are: this is on every call's way
        return self.table.basis(callee, caller, self.groups.of(caller), self._wall())

    def authorizes(self, callee: str, caller: str, entry: str) -> bool:
        """Whether this very entry of the callee's list permits the caller."""
        if self._overrules(callee, caller):
            return False
        if entry != caller and entry not in self.groups.of(caller):
            return False
        return self.table.stands(callee, entry, self._wall())

    def requires_consent(self, callee: str) -> bool:
        """Whether the callee wants to be asked for its consent each time (C3)."""
        return callee in self.table.asked

    def by_password(self, callee: str) -> bool:
        """Whether the callee wants to be reached by whoever knows its call password (D3)."""
        return self.table.policy(callee) == PASSWORD

    @property
    def asking(self) -> bool:
        """Whether anybody does."""
        return bool(self.table.asked)

    def rejects(self, callee: str, caller: str) -> bool:
        """Whether the callee refuses the caller, whatever else is said (C5)."""
        if callee not in self.table.rejected:
            return False
        return self.table.rejects(callee, self.called(caller))

    def called(self, caller: str) -> Collection[str]:
        """All that stands for a caller in a list: its identifier, its names, its groups."""
        return {caller, *self._names(caller), *self.groups.of(caller)}

    def _overrules(self, callee: str, caller: str) -> bool:
        """Whether the callee's list permits nobody, or not this one, whatever stands on it."""
        table = self.table
        if callee in table.policies:
            return True
        return callee in table.rejected and self.rejects(callee, caller)

    def counted(self, callee: str, caller: str) -> bool:
        """Whether what permits the caller permits a number of calls only, as this one would be."""
        if callee not in self.table.counting:
            return False
        entry = self.basis(callee, caller)
        return entry is not None and self._is_counted(callee, entry)

    def told(self, identifier: str) -> list[str]:
        """A list as the edits that make it, with what remains of its limits."""
        return as_edits(self.table.told(identifier, self._wall()))

    def told_besides(self, identifier: str) -> dict[str, str]:
        """Whom it refuses, and its policy: fields, each where there is anything to say."""
        told = {}
        rejected = self.table.rejected.get(identifier)
        if rejected is not None:
            told["Reject"] = "\n".join(as_edits(rejected))
        if identifier in self.table.policies:
            told["Policy"] = self.table.policy(identifier)
        return told

    async def answer(self, peer: TerminalConnection, request: Request) -> None:
        """``QUERY`` / ``PERMITS``: send a terminal its own lists and policy."""
        identifier = peer.identifier
        await self.settled(identifier)  # the changes that it asked for before are in force
        fields = {"Accept": "\n".join(self.told(identifier))}
        if not request.bare:
            fields |= self.told_besides(identifier)
        request.reply("", fields, code=200)

    # Turns.

    def changing(self, identifier: str) -> bool:
        """Whether a change of this list is under way."""
        return identifier in self._turns

    def begin(self, identifier: str) -> Awaitable[None]:
        """Wait for one's turn: a change is worked out from what the one before it leaves."""
        return self._turns.begin(identifier)

    def end(self, identifier: str) -> None:
        """The next one's turn."""
        self._turns.end(identifier)

    async def settled(self, identifier: str) -> None:
        """Wait until the changes of this list that were asked for have been made."""
        await self._turns.settled(identifier)

    # Changes of one list, by whoever has its turn.

    def check(self, identifier: str, edits: Sequence[str], reject: Sequence[str] = ()) -> None:
        """See that lists may be edited so, as they are now.

        :param reject: edits of the list of those who are refused
        :raises ListTooLong: one would be over its limit
        :raises LimitedRejection: somebody would be refused within limits
        """
        self.table.prepare(identifier, edits, self._wall(), self.canonical, reject=reject)

    async def edit(
        self,
        identifier: str,
        edits: Sequence[str],
        *,
        reject: Sequence[str] = (),
        policy: str | None = None,
    ) -> None:
        """Edit lists, and void what rested on a permit that is withdrawn (I2).

        So is what a rejection overrules, and, once its owner is asked each time, what rested on its
        list. What it was asked for goes on, unless it is rejected.

        :param reject: edits of the list of those who are refused
        :param policy: how its consent is had from now on
        :raises RegistrationFailed: nothing has changed
        """
        before = self.table.policy(identifier)
        if policy == before and not edits and not reject:
            return  # a terminal says it each time that it comes
        try:
            change = self.table.prepare(
                identifier, edits, self._wall(), self.canonical, reject=reject, policy=policy
            )
            await self._store.commit([change])
        except (StoreFailed, ListTooLong, LimitedRejection) as error:
            raise RegistrationFailed(str(error)) from None
        fallen = self._apply(change)
        if change.policy != before:
            self.log.info(
                "{owner} gives its consent by another policy: {policy}",
                owner=printable(identifier),
                policy=change.policy,
            )
        sessions = self._sessions.of(identifier)
        if not sessions:
            return
        named = withdrawn(edits, self.canonical)
        stricter = bool(reject) or change.policy != before
        for session in sessions:
            entry = (
                session.permit_entry
            )  # it may have been used up before, and is withdrawn even so
            if stricter and self._is_overruled(session):
                self._sessions.void(session)
            elif entry in fallen or named is None or entry in named:
                self._look_at(session)

    async def take(self, callee: str, caller: str) -> PermitUse:
        """Take one use of the entry that permits a call, and hold the list's turn with it.

        It is durable before the address leaves: after a crash a use may be lost, never had twice
        (I7). In force it is once it is spent.

        :raises PermissionDenied: nothing permits it any more
        :raises ServiceUnavailable: it can't be kept
        """
        await self.begin(callee)
        entry = self.basis(callee, caller)
        if entry is None:
            self.end(callee)
            raise PermissionDenied
        change = None
        if self._is_counted(callee, entry):
            change = self.table.prepare_use(callee, entry, self._wall())
        use = PermitUse(self, callee, entry, change)
        if change is not None:
            try:
                await self._store.commit([change])
            except StoreFailed:
                self.end(callee)
                raise ServiceUnavailable from None
            except Exception:  # given up, for one: it may come to be kept all the same
                use.give_back()
                raise
        return use

    def spent(self, callee: str, entry: str, change: PermitChange | None) -> None:
        """A use that was taken has been had: it is in force, and the list's turn is over."""
        try:
            if change is not None:
                limit = self.table.limit(callee, entry)
                if entry in self._apply(change, used=entry) and limit is not None:
                    for session in self._sessions.of(callee):
                        if session.permit_entry == entry:
                            session.until = limit.until
                    self._set_expiry(callee)
        finally:
            self.end(callee)

    def give_back(self, callee: str, change: PermitChange | None) -> None:
        """A use that was taken was not had: it is put back, and then the list's turn is over."""
        if change is None:
            self.end(callee)
        else:
            self._in_background(self._put_back(callee, change))

    async def _put_back(self, callee: str, taken: PermitChange) -> None:
        try:
            change = self.table.prepare_standing(callee, self._wall())
            try:
                await self._store.commit([change])
            except StoreFailed:
                change = taken  # the use is lost, here as in the store
            self._apply(change)
        finally:
            self.end(callee)

    # What expires.

    def _came_due(self, owner: str) -> None:
        """An entry of a list has expired: so has what rested on it, whatever becomes of the rest.

        Until it is off the list, it permits nobody by its time.
        """
        now = self._wall()
        for session in self._sessions.of(owner):
            over = session.until is not None and session.until <= now
            if over or self.table.expired(owner, session.permit_entry, now):
                self._look_at(session)
        self._in_background(self._drop_expired(owner))

    async def _drop_expired(self, owner: str) -> None:
        await self.begin(owner)
        try:
            now = self._wall()
            if self.table.expires(owner) <= now:
                change = self.table.prepare_standing(owner, now)
                try:
                    await self._store.commit([change])
                except StoreFailed as error:
                    self.log.warn(
                        "What has expired stays on the list of {owner} for now: {why}",
                        owner=printable(owner),
                        why=str(error),
                    )
                    self._expiries.set(owner, now + AGAIN_SECONDS)
                    return
                self._apply(change)
            else:
                self._set_expiry(owner)
        finally:
            self.end(owner)

    def _set_expiry(self, owner: str) -> None:
        """Have a list looked at when the first of what it permits expires."""
        when = self.table.expires(owner)
        for session in self._sessions.of(owner):
            # No session lasts longer than its lifetime, so what ends later doesn't matter.
            if session.until is not None and session.until < min(when, self._wall() + LIFETIME):
                when = session.until
        self._expiries.set(owner, when)

    # What the operator changes.

    async def regroup(self, name: str, members: Iterable[str] | None) -> None:
        """Make a group, or change who is in it; ``None`` deletes it, as ``forget`` does.

        :param name: its name, ``@`` included
        :param members: identifiers, or names of theirs
        :raises GroupRefused: it can't be so; nothing has changed
        :raises StoreFailed: it can't be kept; nothing has changed
        """
        if members is None:
            await self.forget(name)
            return
        await self._operator.acquire()
        try:
            change = self.groups.prepare(name, map(self.canonical, members))
            await self._store.commit([change])
            lost = self.groups.apply(change)
            self._left(name, lost)
            self.renamed()
        finally:
            self._operator.release()
        self.log.info(
            "{name} has {count} members; {lost} are in it no longer",
            name=printable(name),
            count=len(change.members or ()),
            lost=len(lost),
        )

    async def forget(self, entry: str, *more: Change) -> None:
        """Take an identifier, or a group, out of every list and group, and drop its own.

        Whoever has refused it goes on to do so, should there be one again. All sessions of an
        identifier are void, and those that rested on a group.

        :param entry: an identifier, or the name of a group
        :param more: what is to be committed with it, all or nothing
        :raises StoreFailed: it can't be kept; nothing has changed
        """
        await self._operator.acquire()
        turns: list[str] = []
        try:
            await self._take_turns(entry, turns)
            now = self._wall()
            lists = [self.table.prepare_without(owner, entry, now) for owner in turns]
            lists = [change for change in lists if self._holds(change.owner, entry)]
            if self.table.holds(entry):
                lists = [change for change in lists if change.owner != entry]
                lists.append(PermitChange(entry, ()))
            groups = self._groups_without(entry)
            changes: list[Change] = [*lists, *groups, *more]
            if changes:
                await self._store.commit(changes)
            for change in lists:
                self.table.apply(change)
                self._set_expiry(change.owner)
            for group in groups:
                self.groups.apply(group)
            self._forgotten(entry)
        finally:
            for owner in turns:
                self.end(owner)
            self._operator.release()
        self.log.info(
            "{entry} is taken out of {lists} lists and {groups} groups",
            entry=printable(entry),
            lists=len(lists),
            groups=len(groups),
        )

    async def _take_turns(self, entry: str, turns: list[str]) -> None:
        """Have the turn of every list that holds an entry, of its own, and of those that change.

        Who waits here holds turns, and whoever is waited for holds one, waiting for none.
        """
        wanted = {entry, *self._turns, *self.table.holding(entry)}
        while wanted:
            for owner in sorted(wanted):
                await self.begin(owner)
                turns.append(owner)
            wanted = set(self.table.holding(entry)).difference(turns)

    def _groups_without(self, entry: str) -> list[GroupChange]:
        if self.groups.members(entry) is not None:
            return [GroupChange(entry, None)]
        changes = []
        for name in self.groups.of(entry):
            members = self.groups.members(name) or ()
            rest = tuple(member for member in members if member != entry)
            changes.append(GroupChange(name, rest))
        return changes

    def end_all(self, identifier: str) -> None:
        """Whoever acts as a terminal may be another: none of its sessions goes on."""
        for session in self._sessions.all():
            if identifier in (session.caller, session.callee):
                self._sessions.void(session)

    def _forgotten(self, entry: str) -> None:
        for session in self._sessions.all():
            if entry in (session.caller, session.callee):
                self._sessions.void(session)
            elif session.permit_entry == entry:
                self._look_at(session)

    def _left(self, group: str, lost: Iterable[str]) -> None:
        """Some are no longer in a group: so is gone what rested on that."""
        gone = frozenset(lost)
        if gone:
            for session in self._sessions.all():
                if session.permit_entry == group and session.caller in gone:
                    self._look_at(session)

    def renamed(self) -> None:
        """Somebody is in a further group, or called by a further name, and so perhaps refused."""
        if self.table.rejected:
            for session in self._sessions.all():
                if self.rejects(session.callee, session.caller):
                    self._sessions.void(session)

    def stop(self) -> None:
        """Leave no timer behind."""
        self._expiries.stop()
        self._fallen.stop()

    # Inside.

    def _is_counted(self, callee: str, entry: str) -> bool:
        limit = self.table.limit(callee, entry)
        return limit is not None and limit.uses is not None

    def _holds(self, owner: str, entry: str) -> bool:
        return entry in self.table.accepted(owner)

    def _look_at(self, session: Session) -> None:
        """What a session rested on is gone: it rests on something else, or is void."""
        if session.permit_entry in WITHOUT_PERMIT and not self._is_overruled(session):
            return  # it never rested on a list
        entry = self.basis(session.callee, session.caller)
        if entry is None:
            self._sessions.void(session)
        else:
            session.permit_entry, session.until = entry, None

    def _is_overruled(self, session: Session) -> bool:
        """Whether a session is void, whatever the list says that it rested on, if it did."""
        if session.permit_entry not in WITHOUT_PERMIT and self.table.policy(session.callee) != LIST:
            return True
        return self.rejects(session.callee, session.caller)

    def _apply(self, change: PermitChange, used: str = "") -> Iterable[str]:
        """Put a list in force, and log what is no longer on it."""
        fallen = self.table.apply(change)
        if fallen:
            self._fallen.tell(change.owner, fallen, self._wall(), used)
        self._set_expiry(change.owner)
        return fallen

    def _in_background(self, steps: Coroutine[Deferred[Any], Any, None]) -> None:
        """Do what nobody waits for; what nobody foresaw goes to the log."""
        Deferred.fromCoroutine(steps).addErrback(self._not_foreseen)

    def _not_foreseen(self, failure: Failure) -> None:
        self.log.failure("A list could not be changed", failure)


class PermitUse:
    """A use of an entry, taken in the store; the list's turn is held until it is spent or not.

    :ivar entry: the entry that permits the call
    """

    __slots__ = ("_callee", "_change", "_over", "_permits", "entry")

    def __init__(
        self, permits: Permits, callee: str, entry: str, change: PermitChange | None
    ) -> None:
        """
        :param change: the list with one use less; ``None`` where the entry has no need of it
        """
        self.entry = entry
        self._permits = permits
        self._callee = callee
        self._change = change
        self._over = False

    def spent(self) -> None:
        """The call was granted: in this turn of the reactor, before anybody else is served."""
        self._over = True
        self._permits.spent(self._callee, self.entry, self._change)

    def give_back(self) -> None:
        """The call was not granted; nothing, where it was."""
        if not self._over:
            self._over = True
            self._permits.give_back(self._callee, self._change)
