"""The operator's commands to a running mediator: accounts, groups, permits and disclosures."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Final

from twisted.internet.defer import DeferredLock

from broker.interfaces import StoreFailed
from broker.mediator.auth.accounts import Accounts
from broker.mediator.context import MediatorContext
from broker.mediator.ledger_query import LATEST
from broker.messages.errors import ServiceUnavailable
from broker.tables.disclosures import Disclosure, format_time
from broker.tables.groups import GroupRefused
from broker.tables.permits import LIST

#: Records of the ledger that are read at a time.
PAGE: Final = 500
_MICROSECONDS: Final = 1_000_000

#: One line of an answer: plain values by name.
Row = dict[str, object]
#: Takes a row; the next one may come when it is done.
Tell = Callable[[Row], Awaitable[None]]


class AdminApi:
    """Each method is one command: a coroutine that ends when the change is durable and in force.

    It returns the end of the answer; what may be long is passed on before, row by row, to ``tell``.
    Identifiers and names of groups are given in canonical form. A command raises ``AccountRefused``
    or ``GroupRefused`` for what can't be, ``StoreFailed`` for what can't be written or read, and
    has then changed nothing.
    """

    def __init__(self, context: MediatorContext, accounts: Accounts) -> None:
        self._accounts = accounts
        self._permits = context.permits
        self._permit_admin = context.permit_admin
        self._ledger = context.disclosures
        self._store = context.store
        self._lock = DeferredLock()

    # Accounts.

    async def add_account(self, identifier: str, password: str) -> Row:
        """Make an account."""
        await self._accounts.add(identifier, password)
        return {}

    async def reset_account(self, identifier: str, password: str) -> Row:
        """Give an account a new password; its connections end."""
        await self._accounts.reset(identifier, password)
        return {}

    async def remove_account(self, identifier: str) -> Row:
        """Remove an account, and the identifier from every list and group.

        :return: ``lists`` and ``groups``: the number of each that it was on
        """
        async with self._one_at_a_time():
            named = {
                "lists": len(self._permits.table.owners_of(identifier)),
                "groups": len(self._permits.groups.of(identifier)),
            }
            await self._accounts.remove(identifier)
        return {**named}

    async def add_name(self, identifier: str, name: str) -> Row:
        """Give an account another name (C1)."""
        await self._accounts.add_name(identifier, name)
        return {}

    async def remove_name(self, identifier: str, name: str) -> Row:
        """Take a name from an account."""
        await self._accounts.remove_name(identifier, name)
        return {}

    async def list_accounts(self, tell: Tell) -> Row:
        """List all accounts: names, groups, connections, and whether each is reached."""
        listed = self._accounts.listed()
        for account in listed:
            await tell(
                {
                    "identifier": account.identifier,
                    "names": account.names,
                    "groups": sorted(self._permits.groups.of(account.identifier)),
                    "connections": account.connections,
                    "reached": account.reached,
                }
            )
        return {"accounts": len(listed)}

    # Groups.

    async def create_group(self, group: str, members: Iterable[str]) -> Row:
        """Make a group.

        :return: ``members``: the number of its members
        """
        async with self._one_at_a_time():
            if self._permits.groups.members(group) is not None:
                raise GroupRefused(f"there is a group {group} already")
            return await self._regroup(group, members)

    async def add_members(self, group: str, members: Iterable[str]) -> Row:
        """Add members to a group.

        :return: ``members``: the number of its members now
        """
        async with self._one_at_a_time():
            return await self._regroup(group, [*self._members(group), *members])

    async def remove_members(self, group: str, members: Iterable[str]) -> Row:
        """Remove members from a group; calls that they were permitted as its members end (I2).

        :return: ``members``: the number that is left
        """
        async with self._one_at_a_time():
            before = self._members(group)
            leaving = {self._permits.canonical(member) for member in members}
            for member in sorted(leaving.difference(before)):
                raise GroupRefused(f"{member} is not in {group}")
            return await self._regroup(
                group, [member for member in before if member not in leaving]
            )

    async def delete_group(self, group: str) -> Row:
        """Delete a group, and take it out of every list.

        :return: ``members``: the number of its members; ``lists``: the number of lists it was on
        """
        async with self._one_at_a_time():
            members = len(self._members(group))
            lists = len(self._permits.table.owners_of(group))
            await self._permit_admin.regroup(group, None)
        return {"members": members, "lists": lists}

    async def list_groups(self, tell: Tell) -> Row:
        """List all groups, each with the number of its members."""
        names = self._permits.groups.names()
        for name in names:
            await tell({"group": name, "members": len(self._permits.groups.members(name) or ())})
        return {"groups": len(names)}

    async def list_members(self, group: str, tell: Tell) -> Row:
        """List the members of a group."""
        members = self._members(group)
        for member in members:
            await tell({"identifier": member})
        return {"members": len(members)}

    # Permits and disclosures.

    async def show_permits(self, identifier: str, tell: Tell) -> Row:
        """List the callers that a terminal accepts now, each with its entry and what is left of it.

        A group is listed as its members, a row for each; as one row without a caller if it has
        none. Callers that the terminal rejects are left out.

        :return: ``identifier``: the owner of the list; ``entries``: the number of its entries;
            ``policy``: the policy in force, where that is not the list
        """
        whose = self._permits.canonical(identifier)
        policy = self._permits.table.policy(whose)
        if policy != LIST:
            return {"identifier": whose, "entries": 0, "policy": policy}
        edits = self._permits.accept_edits(whose)
        entries = [entry for edit in edits for entry in edit.partition(" ")[2].split(",") if entry]
        for text in entries:
            entry, *limits = text.split(";")
            left = dict(limit.split("=") for limit in limits)
            row: Row = {
                "entry": entry,
                "expires": int(left["expires"]) if "expires" in left else None,
                "uses": int(left["uses"]) if "uses" in left else None,
            }
            members = self._permits.groups.members(entry) if entry[0] == "@" else (entry,)
            for member in members or ():
                if not self._permits.rejects(whose, member):
                    await tell({"caller": member, **row})
            if not members:
                await tell({"caller": None, **row, "group": "none" if members is None else "empty"})
        return {"identifier": whose, "entries": len(entries)}

    async def who_knows(
        self, identifier: str, tell: Tell, *, since: int = 0, most: int | None = None
    ) -> Row:
        """List who was told the address of a terminal, the newest first.

        :param since: leave out older records, in seconds since 1970
        :param most: the largest number of rows
        :return: ``identifier``: whose address it is; ``told``: the number of rows
        """
        whose = self._permits.canonical(identifier)
        try:
            await self._ledger.settled()
        except ServiceUnavailable:
            raise StoreFailed("the latest disclosures can't be written at present") from None
        rows = 0
        earliest = since * _MICROSECONDS
        before, size = LATEST, PAGE
        known: set[Disclosure] = set()  # listed already, of the time at which the last page ended
        while most is None or rows < most:
            page = await self._store.disclosures(whose, before, size)
            fresh = [record for record in page if record.at >= earliest and record not in known]
            for disclosure in fresh[: None if most is None else most - rows]:
                await tell(_row(disclosure))
                rows += 1
            if len(page) < size or page[-1].at < earliest:
                break
            # A page may end between records of one time, which then come first in the next.
            before = page[-1].at + 1
            known = {record for record in page if record.at == page[-1].at}
            size = PAGE + len(known)
        return {"identifier": whose, "told": rows}

    # Inside.

    @asynccontextmanager
    async def _one_at_a_time(self) -> AsyncIterator[None]:
        """A change of a group is worked out from what the change before it leaves."""
        await self._lock.acquire()
        try:
            yield
        finally:
            self._lock.release()

    async def _regroup(self, group: str, members: Iterable[str]) -> Row:
        await self._permit_admin.regroup(group, members)
        return {"members": len(self._members(group))}

    def _members(self, group: str) -> tuple[str, ...]:
        members = self._permits.groups.members(group)
        if members is None:
            raise GroupRefused(f"there is no group {group}")
        return members


def _row(disclosure: Disclosure) -> Row:
    until = disclosure.at + disclosure.expires * _MICROSECONDS
    return {
        "at": format_time(disclosure.at),
        "told": disclosure.recipient,
        "address": disclosure.host,
        "port": disclosure.port,
        "entry": disclosure.basis,
        "session": disclosure.session,
        "until": format_time(until),
    }
