"""The operator's changes of groups and of all lists at once."""

from __future__ import annotations

from collections.abc import Iterable

from twisted.internet.defer import DeferredLock
from twisted.logger import Logger

from broker.interfaces import Change, IStore
from broker.mediator.permits import Permits
from broker.messages.message import printable
from broker.tables.groups import GroupChange
from broker.tables.permits import PermitChange


class PermitAdmin:
    """Changes groups, and takes identifiers and groups out of every list.

    One act at a time: it may hold the locks of several lists, and two such acts could wait for each
    other for ever.
    """

    log = Logger()

    def __init__(self, permits: Permits, store: IStore) -> None:
        self._permits = permits
        self._store = store
        self._lock = DeferredLock()

    async def regroup(self, name: str, members: Iterable[str] | None) -> None:
        """Make a group, or change who is in it; ``None`` deletes it, as ``forget`` does.

        :param name: its name, ``@`` included
        :param members: identifiers, or names of theirs
        :raises GroupRefused: it can't be so; nothing has changed
        :raises StoreFailed: the store does not take it; nothing has changed
        """
        if members is None:
            await self.forget(name)
            return
        permits = self._permits
        await self._lock.acquire()
        try:
            change = permits.groups.prepare(name, map(permits.canonical, members))
            await self._store.commit([change])
            lost = permits.groups.apply(change)
            permits.review.left_group(name, lost)
            permits.review.renamed()
        finally:
            self._lock.release()
        self.log.info(
            "{name} has {count} members; {lost} have left it",
            name=printable(name),
            count=len(change.members or ()),
            lost=len(lost),
        )

    async def forget(self, entry: str, *more: Change) -> None:
        """Take an identifier, or a group, out of every list and group, and drop its own.

        Lists of rejected callers keep it: should there be another of that name, it is rejected too.
        All sessions of an identifier are void, and those that rest on a group.

        :param entry: an identifier, or the name of a group
        :param more: other changes to commit with it, all or nothing
        :raises StoreFailed: the store does not take it; nothing has changed
        """
        await self._lock.acquire()
        locked: list[str] = []
        try:
            await self._lock_lists(entry, locked)
            lists = self._lists_without(entry, locked)
            groups = self._groups_without(entry)
            changes: list[Change] = [*lists, *groups, *more]
            if changes:
                await self._store.commit(changes)
            self._apply(entry, lists, groups)
        finally:
            for owner in locked:
                self._permits.release(owner)
            self._lock.release()
        self.log.info(
            "{entry} is removed from {lists} lists and {groups} groups",
            entry=printable(entry),
            lists=len(lists),
            groups=len(groups),
        )

    async def _lock_lists(self, entry: str, locked: list[str]) -> None:
        """Lock every list that holds an entry, its own, and those that are being changed.

        No deadlock: this waits for holders of one lock each, who wait for no other.

        :param locked: the owners of the lists that are locked, added to one by one
        """
        permits = self._permits
        wanted = {entry, *permits.changing(), *permits.table.owners_of(entry)}
        while wanted:
            for owner in sorted(wanted):
                await permits.acquire(owner)
                locked.append(owner)
            # Others may have come to hold it while this waited.
            wanted = set(permits.table.owners_of(entry)).difference(locked)

    def _lists_without(self, entry: str, owners: Iterable[str]) -> list[PermitChange]:
        table, now = self._permits.table, self._permits.now()
        lists = [
            table.prepare_without(owner, entry, now)
            for owner in owners
            if entry in table.accepted(owner) and owner != entry
        ]
        if table.knows(entry):
            lists.append(PermitChange(entry, ()))
        return lists

    def _groups_without(self, entry: str) -> list[GroupChange]:
        groups = self._permits.groups
        if groups.members(entry) is not None:
            return [GroupChange(entry, None)]
        return [
            GroupChange(name, tuple(one for one in groups.members(name) or () if one != entry))
            for name in groups.of(entry)
        ]

    def _apply(self, entry: str, lists: list[PermitChange], groups: list[GroupChange]) -> None:
        """Put it in force, in one turn of the reactor."""
        permits = self._permits
        for change in lists:
            permits.table.apply(change)
            permits.set_expiry(change.owner)
        for group in groups:
            permits.groups.apply(group)
        permits.review.forgotten(entry)
