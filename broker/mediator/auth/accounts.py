"""The operator's changes of accounts, each durable before it is in force (A19, C1)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

from twisted.internet.defer import DeferredLock
from twisted.logger import Logger

from broker.interfaces import StoreFailed
from broker.mediator.auth.passwords import Passwords
from broker.mediator.auth.verifiers import PasswordRefused
from broker.mediator.context import MediatorContext
from broker.messages import grammar
from broker.messages.errors import Refused
from broker.messages.message import printable
from broker.tables.accounts import AccountChange, AccountRefused, AccountTable

#: Random bytes of a generation: a new password starts one, and the tokens of others are void.
_GENERATION_BYTES: Final = 8


class AccountRow(NamedTuple):
    """An account as the operator sees it.

    :ivar names: its other names
    :ivar connections: the number of its connections now
    :ivar reached: whether it is reached over one of them
    """

    identifier: str
    names: tuple[str, ...]
    connections: int
    reached: bool


class Accounts:
    """Who may log in, and every change of that.

    :ivar table: the accounts in force
    """

    log = Logger()

    def __init__(self, context: MediatorContext, table: AccountTable, passwords: Passwords) -> None:
        self.table = table
        self._store = context.store
        self._permits = context.permits
        self._permit_admin = context.permit_admin
        self._connections = context.connections
        self._resolver = context.resolver
        self._passwords = passwords
        self._randomness = context.randomness
        self._lock = DeferredLock()

    def listed(self) -> list[AccountRow]:
        """All accounts, by identifier."""
        accounts = sorted(self.table, key=lambda account: account.identifier)
        return [self._row(account) for account in accounts]

    def _row(self, account: AccountChange) -> AccountRow:
        identifier = account.identifier
        connections = len(self._connections.connections(identifier))
        reached = self._connections.active(identifier) is not None
        return AccountRow(identifier, account.names, connections, reached)

    # Each of these may raise ``AccountRefused`` or ``StoreFailed``, and then has changed nothing.

    async def add(self, identifier: str, password: str) -> None:
        """Make an account."""
        identifier = _checked(identifier)
        async with self._one_at_a_time():
            self.table.add(identifier, "", "")  # refuse before the work of a password, not after
            verifier = await self._verifier(password)
            await self._commit(self.table.add(identifier, verifier, self._generation()))
        self._log(identifier, "is added")

    async def reset(self, identifier: str, password: str) -> None:
        """Give an account a new password; its tokens, connections and sessions end."""
        identifier = _checked(identifier)
        async with self._one_at_a_time():
            self.table.reset(identifier, "", "")
            verifier = await self._verifier(password)
            await self._commit(self.table.reset(identifier, verifier, self._generation()))
            self._permits.review.of_caller_or_callee(identifier)
            self._disconnect(identifier)
        self._log(identifier, "has a new password")

    async def remove(self, identifier: str) -> None:
        """Remove an account, and the identifier from every list and group.

        Otherwise a later account of that name would be permitted by lists that meant this one.
        """
        identifier = _checked(identifier)
        async with self._one_at_a_time():
            change = self.table.remove(identifier)
            await self._permit_admin.forget(identifier, change)
            self.table.apply(change)
            self._disconnect(identifier)
            try:
                # Changes of its list that it asked for before may have waited for the lock.
                if self._permits.is_changing(identifier):
                    await self._permits.wait_for_changes(identifier)
                    await self._permit_admin.forget(identifier)
                self._connections.withdrawn(identifier)
                await self._resolver.withdraw(identifier)
            except (StoreFailed, Refused) as error:
                self.log.warn(
                    "Account {identifier} is removed, but not all that it registered: {why}",
                    identifier=printable(identifier),
                    why=str(error),
                )
        self._log(identifier, "is removed")

    async def add_name(self, identifier: str, name: str) -> None:
        """Give an account another name."""
        identifier, name = _checked(identifier), _checked(name)
        async with self._one_at_a_time():
            await self._commit(self.table.add_name(identifier, name))
            self._permits.review.renamed()
        self._log(identifier, "has another name")

    async def remove_name(self, identifier: str, name: str) -> None:
        """Take one of its names from an account."""
        identifier, name = _checked(identifier), _checked(name)
        async with self._one_at_a_time():
            await self._commit(self.table.remove_name(identifier, name))
        self._log(identifier, "has one name less")

    # Inside.

    @asynccontextmanager
    async def _one_at_a_time(self) -> AsyncIterator[None]:
        """A change is worked out from what the change before it leaves."""
        await self._lock.acquire()
        try:
            yield
        finally:
            self._lock.release()

    async def _commit(self, change: AccountChange) -> None:
        await self._store.commit([change])
        self.table.apply(change)

    async def _verifier(self, password: str) -> str:
        try:
            return await self._passwords.make(password)
        except (PasswordRefused, Refused) as error:
            raise AccountRefused(str(error)) from None

    def _generation(self) -> str:
        return self._randomness(_GENERATION_BYTES).hex()

    def _disconnect(self, identifier: str) -> None:
        for peer in self._connections.connections(identifier):
            peer.stream.close()
        self._resolver.drop_keys(identifier)

    def _log(self, identifier: str, what: str) -> None:
        self.log.info("Account {identifier} {what}", identifier=printable(identifier), what=what)


def _checked(identifier: str) -> str:
    try:
        return grammar.identifier(identifier)
    except ValueError as error:
        raise AccountRefused(str(error)) from None
