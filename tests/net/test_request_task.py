"""Serving one request: a coroutine that is stepped from one wait to the next."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable

import pytest
from twisted.internet.defer import CancelledError, Deferred

from broker.messages.errors import CalleeBusy
from broker.net.dialogue import Request
from broker.net.request_task import RequestTask
from tests.support.server import a_mediator


class Served:
    """A request whose steps are a coroutine of the test's.

    :ivar log: what was done, refused, and over, in order
    """

    def __init__(self, steps: Callable[[list[object]], Awaitable[None]]) -> None:
        self.log: list[object] = []
        self.request = Request.__new__(Request)
        self.request.work = None

        async def run() -> None:
            await steps(self.log)

        self.task = RequestTask.start(run(), self.request, self)

    def request_failed(self, raised: Exception, request: Request) -> None:
        self.log.append(type(raised))

    def request_served(self, task: RequestTask) -> None:
        self.log.append("over")


class RequestTaskTests:
    """What becomes of the steps."""

    def test_when_the_steps_wait_then_each_wait_has_its_result(self) -> None:
        """The end is reported once; steps that wait for nothing are done when it starts, and then
        there is no task, and no end is reported.
        """
        waits: list[Deferred[str]] = [Deferred(), Deferred()]

        async def steps(log: list[object]) -> None:
            log.append(await waits[0])
            log.append(await waits[1])

        served = Served(steps)
        assert served.task is not None
        waits[0].callback("one")
        assert served.log == ["one"]
        waits[1].callback("two")
        assert served.log == ["one", "two", "over"]
        served = Served(steps)
        assert served.task is None
        assert served.log == [None, None]

    @pytest.mark.parametrize("late", [False, True])
    def test_when_the_steps_raise_then_that_is_reported(self, late: bool) -> None:
        """Sooner or later, to be answered."""
        wait: Deferred[None] = Deferred()

        async def steps(log: list[object]) -> None:
            if late:
                await wait
            raise CalleeBusy

        served = Served(steps)
        assert (served.task is not None) is late
        if late:
            wait.callback(None)
        assert served.log == ([CalleeBusy, "over"] if late else [CalleeBusy])

    @pytest.mark.parametrize("cancelled", [False, True])
    def test_when_a_wait_fails_then_that_is_raised_there(self, cancelled: bool) -> None:
        """The steps may go on. The wait of a task that is cancelled is cancelled: the steps see it,
        and a second time does nothing.
        """
        wait: Deferred[None] = Deferred()

        async def steps(log: list[object]) -> None:
            try:
                await wait
            except ZeroDivisionError:
                log.append("seen")

        served = Served(steps)
        assert served.task is not None
        if cancelled:
            served.task.cancel()
            served.task.cancel()
        else:
            wait.errback(ZeroDivisionError())
        assert served.log == [CancelledError if cancelled else "seen", "over"]


class GarbageTests:
    """What a call leaves behind."""

    @pytest.mark.parametrize("status", ["Acceptable", "Busy"])
    def test_when_a_call_is_over_then_no_ring_of_objects_is_left(self, status: str) -> None:
        """Granted or refused: to find rings stops the server."""
        mediator = a_mediator()
        callee, caller = mediator.connect(), mediator.connect()
        callee.type("REGISTER\nIdentifier:Ib\nAddress:127.0.0.1\nAccept:Add Ia\n\n")

        def call() -> None:
            caller.type("QUERY\nIdentifier:Ia\nCallee:Ib\nTransaction:1\n\n")
            callee.type(f"NOTIFY\nSTATUS {status}.\n\n")
            assert caller.text()
            assert callee.text()

        def garbage() -> int:
            gc.collect()
            for _ in range(50):
                call()
            return gc.collect()

        call()
        gc.disable()
        try:
            assert min(garbage() for _ in range(3)) < 50  # in one, what others leave may fall due
        finally:
            gc.enable()
