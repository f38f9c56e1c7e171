"""The names that terminals register for themselves (C1).

The operator gives an account its names, and a terminal that registers one of them says no more than
is true. Where nobody proves who it is, a name belongs to the first who registers it, for as long as
this process lives: to be kept longer it would have to be worth more than a stranger's word.
"""

from __future__ import annotations

from typing import Final

from broker.mediator.context import MediatorContext
from broker.messages.errors import CalleeNotFound, RegistrationFailed
from broker.tables.accounts import AccountRefused, AccountTable

#: Said alike of another's name and of nobody's: whose it is, is nobody's business.
NOT_GIVEN: Final = "this is no name that the operator has given you"
TAKEN: Final = "somebody is called so already"


class Aliases:
    """Decides what a terminal may call itself."""

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
        """See that a terminal is called so, from now on if it wasn't.

        :return: whether it wasn't, and so can be taken back
        :raises RegistrationFailed: it may not be
        :raises ServiceUnavailable: it can't be told whether it may
        """
        if identifier in (name, self._table.canonical(name)):
            return False
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
        """A name that was taken is not to be had after all."""
        self._table.unclaim(identifier, name)

    async def _is_in_use(self, name: str) -> bool:
        """Whether it is an identifier that anything is known of, which the name would hide."""
        if self._table.get(name) is not None or self._permits.table.knows(name):
            return True
        try:
            await self._resolver.kept(name)
        except CalleeNotFound:
            return bool(self._connections.connections(name))
        return True
