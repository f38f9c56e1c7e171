"""Time that moves only when a test says so, and a thread pool that works when told."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

T = TypeVar("T")

#: Rounds after which a network that is still moving is said to be moving for ever.
ROUNDS: Final = 100_000


def settle(clock: Clock) -> None:
    """Run everything that is due now, and what that makes due, without any time passing."""
    for _ in range(ROUNDS):
        now = clock.seconds()
        if not any(call.getTime() <= now for call in clock.getDelayedCalls()):
            return
        clock.advance(0)
    raise AssertionError("the clock never comes to rest")


def turn(clock: Clock) -> None:
    """Run what is due now, and leave what that makes due to the next turn, as a reactor does."""
    now = clock.seconds()
    for call in [call for call in clock.calls if call.getTime() <= now]:
        if call.active():
            clock.calls.remove(call)
            call.called = 1
            call.func(*call.args, **call.kw)


def advance(clock: Clock, seconds: float) -> None:
    """Let time pass, halting wherever something falls due, so that all happens at its time."""
    end = clock.seconds() + seconds
    for _ in range(ROUNDS):
        settle(clock)
        due = min((call.getTime() for call in clock.getDelayedCalls()), default=end)
        if due > end:
            break
        clock.rightNow = due
        if due == end:
            settle(clock)
            return
    clock.rightNow = end


def result_of(step: Awaitable[T], turn: Callable[[], object] | None = None) -> T:
    """What a step gives; what it raises is raised here.

    :param turn: called until the step is done; without, it must not have to wait
    """

    async def done() -> T:
        return await step

    outcome: list[T] = []
    failed: list[Failure] = []
    Deferred.fromCoroutine(done()).addCallbacks(outcome.append, failed.append)
    while not outcome and not failed:
        assert turn is not None, "this step has to wait for something"
        turn()
    if failed:
        failed[0].raiseException()
    return outcome[0]


def begun(step: Awaitable[Any]) -> list[Any]:
    """What comes of a step that may have to wait, a ``Failure`` too; empty until then."""

    async def done() -> Any:
        return await step

    outcome: list[Any] = []
    Deferred.fromCoroutine(done()).addBoth(outcome.append)
    return outcome


class FakePool:
    """Threads that do their work when the test says so.

    :ivar jobs: what waits to be done, oldest first
    :ivar at_once: it is done as it comes
    :ivar started: ``start`` was called, and ``stop`` wasn't since
    """

    def __init__(self, *, at_once: bool = False) -> None:
        self.jobs: list[Callable[[], object]] = []
        self.at_once = at_once
        self.started = False

    def start(self) -> None:
        """Take work from now on."""
        self.started = True

    def stop(self) -> None:
        """Take no more."""
        self.started = False

    def callInThread(self, func: Callable[..., object], *args: Any) -> None:
        """Keep a job."""
        if self.at_once:
            func(*args)
        else:
            self.jobs.append(lambda: func(*args))

    def run(self, most: int = 1) -> None:
        """Do so many jobs, oldest first."""
        for _ in range(most):
            self.jobs.pop(0)()

    def run_all(self) -> None:
        """Do all there is to do."""
        while self.jobs:
            self.run()
