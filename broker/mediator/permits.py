"""Permits as the mediator keeps them: durable before they are in force, and voiding what falls."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred

from broker.interfaces import IStore, State, StoreFailed
from broker.mediator.sessions import Sessions
from broker.tables.permits import ListTooLong, PermitTable
from broker.wire.refusals import RegistrationFailed


class Permits:
    """Who accepts whom, and all that changes it.

    :ivar table: the lists in force
    """

    def __init__(
        self, state: State, store: IStore, sessions: Sessions, wall: Callable[[], float]
    ) -> None:
        """
        :param wall: the time in seconds since 1970, which never goes back
        """
        self.table = PermitTable(state.permits)
        self._store = store
        self._sessions = sessions
        self._wall = wall
        self._changing: dict[str, list[Deferred[None]]] = {}

    def basis(self, callee: str, caller: str) -> str | None:
        """The entry of the callee's list that permits the caller; ``None`` where none does."""
        return caller if self.table.permits(callee, caller) else None

    def changing(self, identifier: str) -> bool:
        """Whether a change of this list is under way."""
        return identifier in self._changing

    async def begin(self, identifier: str) -> None:
        """Wait for one's turn: a change is worked out from what the one before it leaves."""
        await self.settled(identifier)
        self._changing[identifier] = []

    def end(self, identifier: str) -> None:
        """The next one's turn."""
        for turn in self._changing.pop(identifier):
            turn.callback(None)

    async def settled(self, identifier: str) -> None:
        """Wait until no change of this list is under way."""
        while identifier in self._changing:
            turn: Deferred[None] = Deferred()
            self._changing[identifier].append(turn)
            await turn

    async def edit(self, identifier: str, edits: Sequence[str]) -> None:
        """Edit a list, and void what rested on a permit that is withdrawn (I2).

        :raises RegistrationFailed: nothing has changed
        """
        try:
            change = self.table.prepare(identifier, edits)
            await self._store.commit([change])
        except (StoreFailed, ListTooLong) as error:
            raise RegistrationFailed(str(error)) from None
        for caller in self.table.apply(change):
            self._sessions.withdrawn(caller, identifier)

    def stop(self) -> None:
        """Leave no timer behind."""
