"""Turns: of all who want to change one thing, one at a time, in the order in which they came."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from twisted.internet.defer import Deferred


class KeyedLock:
    """Whose turn it is with each of any number of things, by their names."""

    def __init__(self) -> None:
        self._turns: dict[str, _Turn] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._turns

    def __iter__(self) -> Iterator[str]:
        return iter(self._turns)

    def __len__(self) -> int:
        return len(self._turns)

    async def begin(self, name: str) -> None:
        """Wait for one's turn, and have it until ``end``. Who gives up waiting has none."""
        turn = self._turns.get(name)
        if turn is None:
            self._turns[name] = _Turn()
        else:
            await turn.wait(passing=False)

    async def settled(self, name: str) -> None:
        """Wait until all who came before have had their turn, and have none."""
        turn = self._turns.get(name)
        if turn is not None:
            await turn.wait(passing=True)

    def end(self, name: str) -> None:
        """The next one's turn. However many are done with theirs at once, no stack grows."""
        turn = self._turns[name]
        turn.free = True
        if turn.passing_on:
            return  # the loop that gave this turn goes on
        turn.passing_on = True
        while turn.free and turn.waiting:
            turn.pass_on()
        turn.passing_on = False
        if turn.free:
            del self._turns[name]


class _Turn:
    """What is known of one thing.

    :ivar waiting: who waits, each with whether it is done as soon as it has been told
    :ivar free: nobody has the turn
    :ivar passing_on: the next one is being told
    """

    __slots__ = ("free", "passing_on", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[tuple[Deferred[None], bool]] = deque()
        self.free = False
        self.passing_on = False

    def wait(self, *, passing: bool) -> Deferred[None]:
        """Fires when it is one's turn; cancel to give up."""
        told: Deferred[None] = Deferred(lambda _: self.waiting.remove((told, passing)))
        self.waiting.append((told, passing))
        return told

    def pass_on(self) -> None:
        """Tell the next one."""
        told, passing = self.waiting.popleft()
        self.free = passing
        told.callback(None)
