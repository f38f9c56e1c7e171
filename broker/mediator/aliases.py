"""Aliases: the other names by which a terminal can be called (C1).

With accounts, the operator gives the names, and a terminal can only register one that it has. With
``--auth none`` a name belongs to the first terminal that registers it, until this process ends: no
identity is proven there, so nothing more durable could rest on it.
"""

from __future__ import annotations

from typing import Final

from broker.mediator.context import MediatorContext
from broker.messages.errors import CalleeNotFound, RegistrationFailed
from broker.tables.accounts import AccountRefused, AccountTable

#: The same cause for another's name and for one that no account has: whose it is stays secret.
NOT_GIVEN: Final = "the operator has not given you this name"
TAKEN: Final = "this name is already in use"


class Aliases:
    """Decides which names a terminal may take."""

    def __init__(self, context: MediatorContext, table: AccountTable, *, claimed: bool) -> None:
        """
        :param claimed: a name belongs to the first who registers it; else the operator gives it
        """
        self._table = table
        self._permits = context.permits
        self._connections = context.connections
        self._resolver = context.resolver
        self._claimed = claimed

    async def take(self, identifier: str, name: str) -> bool:
        """Give a terminal a name, unless it has it.

        :return: whether the name is new, and so may be given back
        :raises RegistrationFailed: it may not have the name
        :raises ServiceUnavailable: the resolver can't say whether the name is in use
        """
        if identifier in (name, self._table.canonical(name)):
            return False  # a terminal registers its names each time that it connects
        if not self._claimed:
            raise RegistrationFailed(NOT_GIVEN)
        if await self._is_in_use(name) or self._table.canonical(name) != name:
            raise RegistrationFailed(TAKEN)
        try:
            self._table.claim(identifier, name)
        except AccountRefused as error:
            raise RegistrationFailed(str(error)) from None
        self._permits.review.renamed()
        return True

    def give_back(self, identifier: str, name: str) -> None:
        """Free a name that was taken: the registration that took it has failed."""
        self._table.unclaim(identifier, name)

    async def _is_in_use(self, name: str) -> bool:
        """Whether a name is an identifier that is in use, and that it would hide."""
        if self._table.get(name) is not None or self._permits.table.knows(name):
            return True
        try:
            await self._resolver.registered_binding(name)
        except CalleeNotFound:
            return bool(self._connections.connections(name))
        return True
