"""Locks by key: one holder at a time, in the order in which they came."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from broker.net.keyed_lock import KeyedLock


class KeyedLockTests:
    """The lock of one key."""

    def setup_method(self) -> None:
        self.lock = KeyedLock()
        self.done: list[str] = []

    async def change(self, name: str) -> None:
        """Hold the lock."""
        await self.lock.acquire("x")
        self.done.append(name)

    async def look(self, name: str) -> None:
        """Wait for those who came before."""
        await self.lock.wait_idle("x")
        self.done.append(name)

    def test_when_several_wait_then_each_has_its_turn_in_order(self) -> None:
        """Who only looks holds up none of those behind."""
        steps = (self.change("1"), self.look("2"), self.change("3"), self.look("4"))
        for step in (*steps, self.change("5")):
            Deferred.fromCoroutine(step)
        for expected in ("1", "123", "12345"):
            assert "".join(self.done) == expected
            self.lock.release("x")
        assert len(self.lock) == 0

    def test_when_one_gives_up_then_the_next_has_its_turn(self) -> None:
        """A waiter that is cancelled is passed over."""
        _, second, _ = [Deferred.fromCoroutine(self.change(name)) for name in "123"]
        second.addErrback(lambda failure: None)
        second.cancel()
        self.lock.release("x")
        assert self.done == ["1", "3"]

    def test_when_thousands_release_at_once_then_the_stack_does_not_grow(self) -> None:
        """Each has nothing to do when its turn comes (I24)."""

        async def change(name: str) -> None:
            await self.change(name)
            self.lock.release("x")

        Deferred.fromCoroutine(self.lock.acquire("x"))
        for n in range(5000):
            Deferred.fromCoroutine(change(str(n)))
        self.lock.release("x")
        assert self.done == [str(n) for n in range(5000)]
        assert len(self.lock) == 0
