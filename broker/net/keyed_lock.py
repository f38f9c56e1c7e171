"""Locks by key: of all who want to change one thing, one at a time, in the order they came."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from twisted.internet.defer import Deferred


class KeyedLock:
    """A lock for each of any number of keys; a key that no one holds or waits for takes no room.

    It iterates over the keys that are held.
    """

    def __init__(self) -> None:
        self._locks: dict[str, _Lock] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._locks

    def __iter__(self) -> Iterator[str]:
        return iter(self._locks)

    def __len__(self) -> int:
        return len(self._locks)

    async def acquire(self, key: str) -> None:
        """Wait for a lock, and hold it until ``release``. Cancel to give up waiting."""
        lock = self._locks.get(key)
        if lock is None:
            self._locks[key] = _Lock()
        else:
            await lock.wait(holds=True)

    async def wait_idle(self, key: str) -> None:
        """Wait until all who came before have released a lock, without holding it."""
        lock = self._locks.get(key)
        if lock is not None:
            await lock.wait(holds=False)

    def release(self, key: str) -> None:
        """Give a lock to the next who waits.

        The next may release it at once, and so on: this loop, and not the stack, carries that.
        """
        lock = self._locks[key]
        lock.is_free = True
        if lock.is_passing_on:
            return  # the loop that gave it to the caller goes on
        lock.is_passing_on = True
        while lock.is_free and lock.waiting:
            lock.pass_on()
        lock.is_passing_on = False
        if lock.is_free:
            del self._locks[key]


class _Lock:
    """One key's lock.

    :ivar waiting: who waits, each with whether it will hold the lock then
    :ivar is_free: no one holds it
    :ivar is_passing_on: a loop gives it to one after the other
    """

    __slots__ = ("is_free", "is_passing_on", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[tuple[Deferred[None], bool]] = deque()
        self.is_free = False
        self.is_passing_on = False

    def wait(self, *, holds: bool) -> Deferred[None]:
        """Fires when it is the waiter's turn; cancel it to give up."""
        waiter: Deferred[None] = Deferred(lambda _: self.waiting.remove((waiter, holds)))
        self.waiting.append((waiter, holds))
        return waiter

    def pass_on(self) -> None:
        """Let the next one have it."""
        waiter, holds = self.waiting.popleft()
        self.is_free = not holds
        waiter.callback(None)
