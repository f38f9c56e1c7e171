"""Permits as the mediator keeps them: durable before they are in force (I7).

A change of a list is worked out from what the change before it leaves. So each change holds the
lock of its list: a terminal's registration, a call that uses up a permit, the removal of what has
expired. The operator (``permit_admin``) holds the locks of several lists at a time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from broker.interfaces import IStore, State, StoreFailed
from broker.mediator.connection import TerminalConnection
from broker.mediator.permit_rules import PermitRules
from broker.mediator.revocation_log import RevocationLog
from broker.mediator.session_review import SessionReview
from broker.mediator.sessions import LIFETIME, Sessions
from broker.messages.errors import PermissionDenied, RegistrationFailed, ServiceUnavailable
from broker.messages.message import printable
from broker.net.dialogue import Request
from broker.net.expiry_timer import ExpiryTimer
from broker.net.keyed_lock import KeyedLock
from broker.tables.accounts import AccountTable
from broker.tables.permits import LimitedRejection, ListTooLong, PermitChange, deleted_entries

#: Seconds until the store is asked again to drop what has expired, after it has failed.
RETRY_SECONDS: Final = 60.0


class ListEdits(NamedTuple):
    """What a registration changes of who may call its terminal; often nothing.

    :ivar accept: edits of the list of callers who may
    :ivar reject: edits of the list of callers who may not
    :ivar policy: how the terminal gives its consent from now on
    """

    accept: Sequence[str]
    reject: Sequence[str] = ()
    policy: str | None = None

    def __bool__(self) -> bool:
        return bool(self.accept or self.reject or self.policy)


class Permits(PermitRules):
    """Who accepts which callers, and every change of that.

    :ivar review: ends the sessions whose permit is gone
    """

    log = Logger()

    def __init__(
        self,
        state: State,
        store: IStore,
        sessions: Sessions,
        wall: Callable[[], float],
        accounts: AccountTable,
    ) -> None:
        super().__init__(state, wall, accounts)
        self.review = SessionReview(self, sessions)
        self._store = store
        self._sessions = sessions
        self._locks = KeyedLock()  # by the owner of a list
        self._expiries = ExpiryTimer(sessions.clock, wall, self)
        self._revocations = RevocationLog(sessions.clock)
        for change in state.permits:
            if change.limits:
                self._expiries.set(change.owner, self.table.expires(change.owner))

    async def answer(self, peer: TerminalConnection, request: Request) -> None:
        """``QUERY`` / ``PERMITS``: send a terminal its own lists and policy."""
        owner = peer.identifier
        await self.wait_for_changes(owner)  # those that it asked for before are in force then
        fields = {"Accept": "\n".join(self.accept_edits(owner))}
        if not request.bare:
            fields |= self.other_fields(owner)
        request.reply("", fields, code=200)

    # Locks.

    def is_changing(self, owner: str) -> bool:
        """Whether a list is being changed."""
        return owner in self._locks

    def changing(self) -> Iterator[str]:
        """The owners of all lists that are being changed."""
        return iter(self._locks)

    def acquire(self, owner: str) -> Awaitable[None]:
        """Wait for a list, and have it to oneself until ``release``."""
        return self._locks.acquire(owner)

    def release(self, owner: str) -> None:
        """Let the next one change a list."""
        self._locks.release(owner)

    def wait_for_changes(self, owner: str) -> Awaitable[None]:
        """Wait until the changes of a list that were asked for before are made."""
        return self._locks.wait_idle(owner)

    # Changes of one list, by the holder of its lock.

    def prepare(self, owner: str, edits: ListEdits) -> PermitChange | None:
        """Work out what edits make of lists as they are now; nothing changes yet.

        :return: ``None`` where they change nothing: a terminal sends its policy each time that it
            connects
        :raises RegistrationFailed: the lists may not be edited so
        """
        is_same_policy = edits.policy is None or edits.policy == self.table.policy(owner)
        if is_same_policy and not edits.accept and not edits.reject:
            return None
        try:
            return self.table.prepare(
                owner,
                edits.accept,
                self.now(),
                self.canonical,
                reject=edits.reject,
                policy=edits.policy,
            )
        except (ListTooLong, LimitedRejection) as error:
            raise RegistrationFailed(str(error)) from None

    async def edit(self, owner: str, edits: ListEdits, change: PermitChange | None = None) -> None:
        """Edit lists, and void the sessions whose permit is withdrawn (I2).

        So are those of rejected callers and, if the policy is another one, those that rest on the
        list. A session that the callee has consented to goes on, unless its caller is rejected.

        :param change: what ``prepare`` made of the edits, where no other change came in between
        :raises RegistrationFailed: nothing has changed
        """
        before = self.table.policy(owner)
        if change is None:
            change = self.prepare(owner, edits)
            if change is None:
                return
        try:
            await self._store.commit([change])
        except StoreFailed as error:
            raise RegistrationFailed(str(error)) from None
        removed = self._apply(change)
        if change.policy != before:
            self.log.info(
                "The consent policy of {owner} is now {policy}",
                owner=printable(owner),
                policy=change.policy,
            )
        if self._sessions.of(owner):
            deleted = deleted_entries(edits.accept, self.canonical)

            def is_concerned(entry: str) -> bool:
                # An entry may have been used up before, and is withdrawn even so.
                return entry in removed or deleted is None or entry in deleted

            is_stricter = bool(edits.reject) or change.policy != before
            self.review.edited(owner, is_stricter, is_concerned)

    async def take(self, callee: str, caller: str) -> PermitUse:
        """Take one use of the entry that permits a call; its list stays locked with it.

        It is durable before the address is sent: a crash may lose a use, and never gives one twice
        (I7). It is in force once it is spent.

        :raises PermissionDenied: nothing permits the call now
        :raises ServiceUnavailable: the store does not take it
        """
        await self.acquire(callee)
        entry = self.permit_entry(callee, caller)
        if entry is None:
            self.release(callee)
            raise PermissionDenied
        change = None
        if self._has_uses(callee, entry):
            change = self.table.prepare_use(callee, entry, self.now())
        use = PermitUse(self, callee, entry, change)
        if change is not None:
            try:
                await self._store.commit([change])
            except StoreFailed:
                self.release(callee)
                raise ServiceUnavailable from None
            except Exception:  # for one, cancelled: the store may keep it nevertheless
                use.give_back()
                raise
        return use

    def spent(self, use: PermitUse) -> None:
        """A use is spent: put it in force, and unlock the list."""
        callee, entry = use.callee, use.entry
        try:
            if use.change is not None:
                limit = self.table.limit(callee, entry)
                if entry in self._apply(use.change, used=entry) and limit is not None:
                    # It was the last one: its sessions end when the entry would have expired.
                    for session in self._sessions.of(callee):
                        if session.permit_entry == entry:
                            session.until = limit.until
                    self.set_expiry(callee)
        finally:
            self.release(callee)

    def give_back(self, use: PermitUse) -> None:
        """A use is not needed: put it back, and then unlock the list."""
        if use.change is None:
            self.release(use.callee)
        else:
            self._in_background(self._put_back(use.callee, use.change))

    async def _put_back(self, callee: str, taken: PermitChange) -> None:
        try:
            change = self.table.prepare_unexpired(callee, self.now())
            try:
                await self._store.commit([change])
            except StoreFailed:
                change = taken  # the use is lost, here as in the store
            self._apply(change)
        finally:
            self.release(callee)

    def _apply(self, change: PermitChange, used: str = "") -> Iterable[str]:
        """Put a list in force.

        :param used: the entry whose last use this may be
        :return: the entries that are removed by it
        """
        removed = self.table.apply(change)
        if removed:
            self._revocations.removed(change.owner, removed, self.now(), used)
        self.set_expiry(change.owner)
        return removed

    # Expiry.

    def came_due(self, owner: str) -> None:
        """An entry of a list has expired, and so has what rests on it, even if the store fails.

        The entry permits no one from then on; that it is still on the list does not matter.
        """
        self.review.expired(owner, self.now())
        self._in_background(self._drop_expired(owner))

    async def _drop_expired(self, owner: str) -> None:
        await self.acquire(owner)
        try:
            now = self.now()
            if self.table.expires(owner) > now:
                self.set_expiry(owner)
                return
            change = self.table.prepare_unexpired(owner, now)
            try:
                await self._store.commit([change])
            except StoreFailed as error:
                self.log.warn(
                    "Expired entries stay on the list of {owner} for now: {why}",
                    owner=printable(owner),
                    why=str(error),
                )
                self._expiries.set(owner, now + RETRY_SECONDS)
            else:
                self._apply(change)
        finally:
            self.release(owner)

    def set_expiry(self, owner: str) -> None:
        """Look at a list again when the first of what it permits expires."""
        when = self.table.expires(owner)
        for session in self._sessions.of(owner):
            # No session is longer than its lifetime, so an end after that does not matter.
            if session.until is not None and session.until < min(when, self.now() + LIFETIME):
                when = session.until
        self._expiries.set(owner, when)

    def stop(self) -> None:
        """Leave no timer behind."""
        self._expiries.stop()
        self._revocations.stop()

    def _in_background(self, steps: Coroutine[Deferred[Any], Any, None]) -> None:
        """Do what no request waits for; log an unexpected error."""
        Deferred.fromCoroutine(steps).addErrback(self._not_changed)

    def _not_changed(self, failure: Failure) -> None:
        self.log.failure("A list could not be changed", failure)


class PermitUse:
    """One use of a permit entry, taken in the store; the list is locked until it is settled.

    :ivar entry: the entry that permits the call
    :ivar change: the list with one use less; ``None`` where the entry has no limit of uses
    """

    __slots__ = ("_is_settled", "_permits", "callee", "change", "entry")

    def __init__(
        self, permits: Permits, callee: str, entry: str, change: PermitChange | None
    ) -> None:
        self.callee = callee
        self.entry = entry
        self.change = change
        self._permits = permits
        self._is_settled = False

    def spent(self) -> None:
        """The call is granted: in this turn of the reactor, before another request is served."""
        self._is_settled = True
        self._permits.spent(self)

    def give_back(self) -> None:
        """The call was not granted. Nothing happens where it was."""
        if not self._is_settled:
            self._is_settled = True
            self._permits.give_back(self)
