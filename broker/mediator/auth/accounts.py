"""The operator's acts on accounts, each durable before it is in force (A19, C1)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

from twisted.internet.defer import DeferredLock
from twisted.logger import Logger

from broker.interfaces import StoreFailed
from broker.mediator.auth.passwords import PasswordRefused, Passwords
from broker.mediator.context import MediatorContext
from broker.messages import grammar
from broker.messages.errors import Refused
from broker.messages.message import printable
from broker.tables.accounts import AccountChange, AccountRefused, AccountTable

#: Bytes of what tells one password's time from another's.
_GENERATION_BYTES: Final = 8


class Listed(NamedTuple):
    """An account as the operator sees it.

    :ivar names: its other names
    :ivar connections: how many it has now
    :ivar reached: it has registered an address over one of them
    """

    identifier: str
    names: tuple[str, ...]
    connections: int
    reached: bool


class Accounts:
    """Who may log in, and all that changes it.

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
        self._acting = DeferredLock()

    def canonical(self, name: str) -> str:
        """The identifier that a name stands for; any other text as it is."""
        return self.table.canonical(name)

    def listed(self) -> list[Listed]:
        """All accounts, by identifier."""
        return [self._listed(account) for account in sorted(self.table, key=_identifier)]

    def _listed(self, account: AccountChange) -> Listed:
        identifier = account.identifier
        connections = len(self._connections.connections(identifier))
        reached = self._connections.active(identifier) is not None
        return Listed(identifier, account.names, connections, reached)

    # Each of these raises ``AccountRefused``, or ``StoreFailed``, and has changed nothing then.

    async def add(self, identifier: str, password: str) -> None:
        """Make an account."""
        identifier = _checked(identifier)
        async with self._one_at_a_time():
            self.table.add(identifier, "", "")  # better refused before the work
            verifier = await self._verifier(password)
            await self._commit(self.table.add(identifier, verifier, self._generation()))
        self._told(identifier, "is added")

    async def reset(self, identifier: str, password: str) -> None:
        """Give an account another password: with the old go tokens, connections and sessions."""
        identifier = _checked(identifier)
        async with self._one_at_a_time():
            self.table.reset(identifier, "", "")
            verifier = await self._verifier(password)
            await self._commit(self.table.reset(identifier, verifier, self._generation()))
            self._permits.review.of_caller_or_callee(identifier)
            self._disconnect(identifier)
        self._told(identifier, "has another password")

    async def remove(self, identifier: str) -> None:
        """Remove an account, and the identifier from every list and group.

        Else whoever is called so later would be permitted by lists that meant another.
        """
        identifier = _checked(identifier)
        async with self._one_at_a_time():
            change = self.table.remove(identifier)
            await self._permit_admin.forget(identifier, change)
            self.table.apply(change)
            self._disconnect(identifier)
            try:
                # What it had asked for before, and what waited for the turn of its list since.
                if self._permits.is_changing(identifier):
                    await self._permits.wait_for_changes(identifier)
                    await self._permit_admin.forget(identifier)
                self._connections.withdrawn(identifier)
                await self._resolver.withdraw(identifier)
            except (StoreFailed, Refused) as error:
                self.log.warn(
                    "Account {identifier} is removed, and something of it stays: {why}",
                    identifier=printable(identifier),
                    why=str(error),
                )
        self._told(identifier, "is removed")

    async def add_name(self, identifier: str, name: str) -> None:
        """Give an account a further name."""
        identifier, name = _checked(identifier), _checked(name)
        async with self._one_at_a_time():
            await self._commit(self.table.add_name(identifier, name))
            self._permits.review.renamed()
        self._told(identifier, "has a further name")

    async def remove_name(self, identifier: str, name: str) -> None:
        """Take one of its names from an account."""
        identifier, name = _checked(identifier), _checked(name)
        async with self._one_at_a_time():
            await self._commit(self.table.remove_name(identifier, name))
        self._told(identifier, "has lost a name")

    # Inside.

    @asynccontextmanager
    async def _one_at_a_time(self) -> AsyncIterator[None]:
        """What an act is worked out from is what the one before it leaves."""
        await self._acting.acquire()
        try:
            yield
        finally:
            self._acting.release()

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

    def _told(self, identifier: str, what: str) -> None:
        self.log.info("Account {identifier} {what}", identifier=printable(identifier), what=what)


def _checked(identifier: str) -> str:
    try:
        return grammar.identifier(identifier)
    except ValueError as error:
        raise AccountRefused(str(error)) from None


def _identifier(account: AccountChange) -> str:
    return account.identifier
