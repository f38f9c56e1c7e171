"""One thread for calls that block."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol


class Worker(Protocol):
    """Threads, such as ``twisted.python.threadpool.ThreadPool``: one of them is used."""

    def start(self) -> object:
        """Take work from now on."""

    def stop(self) -> object:
        """Take no work from now on."""

    def callInThread(self, func: Callable[..., object], *args: Any) -> object:
        """Call a function in one of them."""


class OneThread:
    """A thread that does its work in order.

    A router can make a call block for long, and must not keep this process from ending: nothing
    waits for the thread, neither when it is stopped nor when the process ends.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._started = False
        self._stopped = False

    def start(self) -> None:
        """Take work; the thread is started with the first."""

    def stop(self) -> None:
        """End the thread once what it has been given is done."""
        self._stopped = True
        if self._started:
            self._jobs.put(None)

    def callInThread(self, func: Callable[..., object], *args: Any) -> None:
        """Have a function called, which must not raise; after ``stop`` nothing is called."""
        if self._stopped:
            return
        if not self._started:
            self._started = True
            Thread(target=self._run, name=self._name, daemon=True).start()
        self._jobs.put(lambda: func(*args))

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
