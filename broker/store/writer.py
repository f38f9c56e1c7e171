"""The thread that writes a database: groups of commits, and one task between two groups."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Final, Generic, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads

from broker.store.database import Database
from broker.store.transactions import Commit, Outcome, write_group

#: How many commits go into one transaction.
GROUP_MOST: Final = 2_000

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class StoreTask(Generic[T]):
    """Work between two transactions; most often it reads what is stored.

    :ivar done: fires with its result
    :ivar writes: whether it is a transaction itself
    """

    work: Callable[[Database], T]
    done: Deferred[T]
    writes: bool


class WriterEvents(Protocol):
    """What the writer reports. Each is called in the reactor's thread."""

    def group_written(self, outcomes: Sequence[Outcome]) -> None:
        """A group of commits was written, or refused."""

    def task_done(self, task: StoreTask[Any], result: Any) -> None:
        """A task has its result."""

    def task_failed(self, task: StoreTask[Any], error: Exception) -> None:
        """A task raised an exception."""

    def writer_closed(self, error: Exception | None) -> None:
        """The database is closed, the thread ends.

        :param error: why it could not be closed
        """


class Writer:
    """Writes a database in a thread of its own, which ends after `stop`.

    One sync serves all commits that arrive during the one before (I8).
    """

    def __init__(
        self, database: Database, reactor: IReactorFromThreads, events: WriterEvents
    ) -> None:
        self._database = database
        self._reactor = reactor
        self._events = events
        self._queue: SimpleQueue[list[Commit] | StoreTask[Any] | None] = SimpleQueue()
        # A daemon, so that a process which gives up starting does not wait for it.
        Thread(target=self._run, name="store", daemon=True).start()

    # In the reactor's thread.

    def put(self, job: list[Commit] | StoreTask[Any]) -> None:
        """Give it commits, or a task; it does them in this order."""
        self._queue.put(job)

    def stop(self) -> None:
        """Let it finish what it was given, and close the database."""
        self._queue.put(None)

    # In the writer's thread.

    def _run(self) -> None:
        database, report, events = self._database, self._reactor.callFromThread, self._events
        tasks: deque[StoreTask[Any]] = deque()
        more = True
        while more or tasks:
            group, more = self._gather(tasks) if more else ([], False)
            for start in range(0, len(group), GROUP_MOST):
                outcomes = write_group(database, group[start : start + GROUP_MOST])
                report(events.group_written, outcomes)
            # One task at a time, so that commits never wait for many.
            if tasks:
                self._perform(tasks.popleft())
        problem: Exception | None = None
        try:
            database.close()
        except Exception as error:
            problem = error
        report(events.writer_closed, problem)

    def _gather(self, tasks: deque[StoreTask[Any]]) -> tuple[list[Commit], bool]:
        """Take all that has arrived; wait for something if there is no task to do.

        :param tasks: new tasks are appended
        :return: commits, and whether more can arrive
        """
        group: list[Commit] = []
        try:
            job = self._queue.get(block=not tasks)
            while job is not None:
                if isinstance(job, list):
                    group += job
                else:
                    tasks.append(job)
                job = self._queue.get_nowait()
        except Empty:
            return group, True
        return group, False

    def _perform(self, task: StoreTask[Any]) -> None:
        report, events = self._reactor.callFromThread, self._events
        try:
            result = task.work(self._database)
        except Exception as error:  # Whatever it was, the thread must go on.
            report(events.task_failed, task, error)
        else:
            report(events.task_done, task, result)
