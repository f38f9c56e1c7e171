"""``sqlite:PATH``: a store in a file, written by one thread that commits in groups.

What one turn of the reactor brings goes to the thread together, and what arrives during a sync is
then committed in one transaction. So a change costs a share of a sync and of a change of threads,
however many there are (I8). Between transactions the thread does one task, such as a query.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from twisted.internet.defer import Deferred, execute, fail, succeed
from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import Logger
from zope.interface import implementer

from broker.interfaces import Change, IStore, State, StoreFailed
from broker.store import rows
from broker.store.connection import Connect, connect
from broker.store.database import Database, open_database
from broker.store.memory import MemoryStore
from broker.store.transactions import Commit, Outcome, is_server_fault, refusal_of, transact
from broker.store.writer import StoreTask, Writer
from broker.tables.disclosures import Disclosure
from broker.tables.grants import Randomness

#: How many commits may wait; beyond them the store is busy (I15).
WAITING_MOST: Final = 10_000
#: How many tasks may wait.
TASKS_MOST: Final = 1_000
#: How many disclosures one transaction deletes, while commits wait: some 20 ms, since those of
#: many terminals lie all over their index.
SLICE: Final = 1_000

T = TypeVar("T")


def make_store(
    path: str | None, reactor: IReactorFromThreads, randomness: Randomness
) -> MemoryStore | SqliteStore:
    """Make the store that a setting names; nothing is opened before it is loaded.

    :param path: of the database, or ``None`` for a store in memory
    """
    return MemoryStore(randomness) if path is None else SqliteStore(path, reactor, randomness)


@implementer(IStore)
class SqliteStore:
    """Stores changes in one SQLite file, which this store alone writes.

    All of it runs in the reactor's thread; the `Writer` has a thread of its own.
    """

    log = Logger()

    def __init__(
        self,
        path: str,
        reactor: IReactorFromThreads,
        randomness: Randomness,
        *,
        connect: Connect = connect,
        waiting_most: int = WAITING_MOST,
    ) -> None:
        """
        Nothing is opened and no thread is started before ``load``.

        :param connect: opens the database
        :param waiting_most: how many commits may wait
        """
        self._path = path
        self._reactor = reactor
        self._randomness = randomness
        self._connect = connect
        self._most = waiting_most
        self._waiting = 0
        self._tasks = 0
        self._failing = False
        self._gathered: list[Commit] = []
        self._writer: Writer | None = None
        self._stopped: Deferred[None] | None = None

    def load(self) -> Deferred[State]:
        """Return all that is stored. The first time, this opens the database, and fires at once.

        :raises StoreFailed: the database must not be used
        """
        if self._stopped is None and self._writer is None:
            return execute(self._open)
        return self._ask(_state_of)

    def commit(self, changes: Sequence[Change]) -> Deferred[None]:
        """Store changes; fires when a transaction that has them is on the disk.

        :raises StoreFailed: none of them is stored
        """
        if self._writer is None or self._stopped is not None:
            return fail(StoreFailed("the store is closed"))
        if self._waiting >= self._most:
            return fail(StoreFailed("busy"))
        self._waiting += 1
        done: Deferred[None] = Deferred()
        if not self._gathered:
            self._reactor.callFromThread(self._hand_over)
        self._gathered.append(Commit(changes, done))
        return done

    def disclosures(self, whose: str, before: int, most: int) -> Deferred[Sequence[Disclosure]]:
        """Return the disclosures of one terminal, the newest first, of all committed by now.

        :raises StoreFailed: they cannot be read
        """
        most = max(0, min(most, rows.DISCLOSURES_MOST))
        return self._ask(partial(_disclosures_of, whose=whose, before=before, most=most))

    def prune(self, before: int) -> Deferred[int]:
        """Delete the disclosures that are older than this, in slices; others commit in between.

        :return: how many were deleted, also if a failure or `stop` ended it half-way
        :raises StoreFailed: none was deleted
        """
        return Deferred.fromCoroutine(self._prune(before))

    async def _prune(self, before: int) -> int:
        deleted = 0
        while True:
            try:
                slice_ = await self._ask(partial(_prune, before=before), writes=True)
            except StoreFailed:
                if deleted:
                    return deleted
                raise
            deleted += slice_
            if slice_ < SLICE:
                return deleted

    def _ask(self, work: Callable[[Database], T], *, writes: bool = False) -> Deferred[T]:
        """Have the writer do something after all that was committed before."""
        if self._writer is None or self._stopped is not None:
            return fail(StoreFailed("the store is closed"))
        if self._tasks >= TASKS_MOST:
            return fail(StoreFailed("busy"))
        self._tasks += 1
        self._hand_over()
        done: Deferred[T] = Deferred()
        self._writer.put(StoreTask(work, done, writes))
        return done

    def _hand_over(self) -> None:
        """Give the writer what this turn of the reactor has brought: it wakes once for all."""
        if self._gathered and self._writer is not None:
            self._writer.put(self._gathered)
            self._gathered = []

    def stop(self) -> Deferred[None]:
        """Commit what waits, then close the database; new commits are refused from now on."""
        if self._stopped is None:
            self._stopped = succeed(None) if self._writer is None else Deferred()
            if self._writer is not None:
                self._hand_over()
                self._writer.stop()
        ended: Deferred[None] = Deferred()
        self._stopped.addCallback(lambda _: ended.callback(None))
        return ended

    def _open(self) -> State:
        database = open_database(self._path, connect=self._connect, randomness=self._randomness)
        try:
            state = _state_of(database)
        except StoreFailed as error:
            database.close()
            raise StoreFailed(f"{self._path}: {error}: put a backup in its place") from None
        except BaseException:
            database.close()
            raise
        if database.renewed:
            self.log.warn(
                "{path} may have lost changes: {why}. Its epoch is a new one, which tells terminals"
                " to look at their lists",
                path=self._path,
                why=database.renewed,
            )
        self._writer = Writer(database, self._reactor, self)
        return state

    # What the writer reports.

    def group_written(self, outcomes: Sequence[Outcome]) -> None:
        """Fire each commit of a group."""
        self._waiting -= len(outcomes)
        self._note([error for _, error in outcomes if error is not None])
        for commit, error in outcomes:
            if error is None:
                commit.done.callback(None)
            else:
                commit.done.errback(refusal_of(error))

    def task_done(self, task: StoreTask[T], result: T) -> None:
        """Fire a task."""
        self._tasks -= 1
        if task.writes:
            self._note(())
        task.done.callback(result)

    def task_failed(self, task: StoreTask[Any], error: Exception) -> None:
        """Fail a task; the log has what went wrong."""
        self._tasks -= 1
        if task.writes:
            self._note([error])
            task.done.errback(refusal_of(error))
            return
        self.log.error("{path}: can't be read: {error!r}", path=self._path, error=error)
        refusal = StoreFailed("the server can't read what it keeps at present")
        refusal.__cause__ = error
        task.done.errback(refusal)

    def writer_closed(self, error: Exception | None) -> None:
        """Fire `stop`."""
        if error is not None:
            self.log.error("{path}: could not be closed: {error!r}", path=self._path, error=error)
        if self._stopped is not None:
            self._stopped.callback(None)

    def _note(self, errors: Sequence[Exception]) -> None:
        """Log when the disk begins to fail, when it works again, and each bad change."""
        faults = [error for error in errors if is_server_fault(error)]
        if faults and not self._failing:
            self.log.error("{path}: changes fail: {error!r}", path=self._path, error=faults[0])
        elif not errors and self._failing:
            self.log.info("{path}: changes are kept again", path=self._path)
        if faults or not errors:
            self._failing = bool(faults)
        for error in errors:
            if error not in faults:
                self.log.error(
                    "{path}: a change can't be kept: {error!r}", path=self._path, error=error
                )


def _state_of(database: Database) -> State:
    connection = database.connection
    return State(
        database.epoch,
        tuple(rows.read_permits(connection)),
        tuple(rows.read_accounts(connection)),
        tuple(rows.read_groups(connection)),
    )


def _disclosures_of(
    database: Database, whose: str, before: int, most: int
) -> tuple[Disclosure, ...]:
    return rows.read_disclosures(database.connection, whose, before, most)


def _prune(database: Database, before: int) -> int:
    """Delete one slice of what is older than this."""
    return transact(database, partial(rows.prune, before=before, most=SLICE))
