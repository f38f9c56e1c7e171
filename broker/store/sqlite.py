"""``sqlite:PATH``: a store in a file, written by one thread that commits what has gathered.

What one turn of the reactor brings goes to the thread together, and what comes while that is at the
disk is then committed in one transaction: so a change costs a share of a sync and of a change of
threads, however many there are (I8). Between transactions the thread answers one question. All else
happens in the reactor's thread.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Final, Generic, TypeVar

from twisted.internet.defer import Deferred, execute, fail, succeed
from twisted.logger import Logger
from zope.interface import implementer

from broker.interfaces import Change, IStore, State, StoreFailed
from broker.store import rows
from broker.store.connection import Connect, Connection, code_of, connect
from broker.store.database import Database, open_database
from broker.tables.disclosures import Disclosure
from broker.tables.grants import Randomness

#: How many commits may wait; beyond them the store is busy (I15).
WAITING_MOST: Final = 10_000
#: How many go into one transaction.
GROUP_MOST: Final = 2_000
#: How many questions may wait.
QUESTIONS_MOST: Final = 1_000
#: How many disclosures are dropped in one transaction, for which commits wait: some 20 ms, since
#: those of many terminals lie all over their index.
SLICE: Final = 1_000

T = TypeVar("T")

#: What is wrong with the database and not with a change: trying each by itself is of no use.
_HOPELESS: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOTADB,
    }
)
#: What is no fault of the change.
_OURS: Final = _HOPELESS | {sqlite3.SQLITE_FULL}


@dataclass(slots=True, eq=False)
class _Commit:
    """Changes that wait to be kept."""

    changes: Sequence[Change]
    done: Deferred[None]


@dataclass(slots=True, eq=False)
class _Question(Generic[T]):
    """Something that is to be done between transactions: most often to read what is kept.

    :ivar writes: whether it is a transaction itself
    """

    work: Callable[[Database], T]
    done: Deferred[T]
    writes: bool


#: What became of a commit: ``None`` if it is durable, else why it is not.
_Outcome = tuple[_Commit, Exception | None]


@implementer(IStore)
class SqliteStore:
    """Keeps changes in one file of SQLite, which this store alone writes."""

    log = Logger()

    def __init__(
        self,
        path: str,
        call_from_thread: Callable[..., object],
        randomness: Randomness,
        *,
        connect: Connect = connect,
        waiting_most: int = WAITING_MOST,
    ) -> None:
        """
        Nothing is opened and no thread is started before ``load``.

        :param call_from_thread: has the reactor call a function in its next turn:
            ``reactor.callFromThread``
        :param connect: opens the database
        :param waiting_most: how many commits may wait
        """
        self._path = path
        self._call_from_thread = call_from_thread
        self._randomness = randomness
        self._connect = connect
        self._most = waiting_most
        self._waiting = 0
        self._asked = 0
        self._failing = False
        self._gathered: list[_Commit] = []
        self._queue: SimpleQueue[list[_Commit] | _Question[Any] | None] = SimpleQueue()
        self._loaded = False
        self._stopped: Deferred[None] | None = None

    # In the reactor's thread.

    def load(self) -> Deferred[State]:
        """All that it holds; the first time it opens the database, and is done at once.

        :raises StoreFailed: the database must not be used
        """
        if self._stopped is None and not self._loaded:
            return execute(self._open)
        return self._ask(_state_of)

    def commit(self, changes: Sequence[Change]) -> Deferred[None]:
        """Keep changes; done when a transaction that holds them is on the disk.

        :raises StoreFailed: none of them is kept
        """
        if not self._loaded or self._stopped is not None:
            return fail(StoreFailed("the store is closed"))
        if self._waiting >= self._most:
            return fail(StoreFailed("busy"))
        self._waiting += 1
        done: Deferred[None] = Deferred()
        if not self._gathered:
            self._call_from_thread(self._hand_over)
        self._gathered.append(_Commit(changes, done))
        return done

    def disclosures(self, whose: str, before: int, most: int) -> Deferred[Sequence[Disclosure]]:
        """What was told of one terminal, the newest first, with all that was committed by now.

        :raises StoreFailed: it can't be read
        """
        most = max(0, min(most, rows.DISCLOSURES_MOST))
        return self._ask(partial(_disclosures_of, whose=whose, before=before, most=most))

    def prune(self, before: int) -> Deferred[int]:
        """Drop the disclosures that are older than this, in slices, between which others commit.

        :return: how many went, where a failure or the end stopped it half-way too
        :raises StoreFailed: none of them went
        """
        return Deferred.fromCoroutine(self._prune(before))

    async def _prune(self, before: int) -> int:
        gone = 0
        while True:
            try:
                dropped = await self._ask(partial(_prune, before=before), writes=True)
            except StoreFailed:
                if gone:
                    return gone
                raise
            gone += dropped
            if dropped < SLICE:
                return gone

    def _ask(self, work: Callable[[Database], T], *, writes: bool = False) -> Deferred[T]:
        """Have the writer do something once it has committed what was committed before."""
        if not self._loaded or self._stopped is not None:
            return fail(StoreFailed("the store is closed"))
        if self._asked >= QUESTIONS_MOST:
            return fail(StoreFailed("busy"))
        self._asked += 1
        self._hand_over()
        done: Deferred[T] = Deferred()
        self._queue.put(_Question(work, done, writes))
        return done

    def _hand_over(self) -> None:
        """Give the writer what this turn of the reactor has brought: it wakes once for all."""
        if self._gathered:
            self._queue.put(self._gathered)
            self._gathered = []

    def stop(self) -> Deferred[None]:
        """Commit what waits, then close the database; from now on nothing is taken."""
        if self._stopped is None:
            self._stopped = Deferred() if self._loaded else succeed(None)
            if self._loaded:
                self._hand_over()
                self._queue.put(None)
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
        # A daemon, so that a process which gives up starting doesn't wait for it.
        Thread(target=self._work, args=(database,), name="store", daemon=True).start()
        self._loaded = True
        return state

    def _settle(self, outcomes: Sequence[_Outcome]) -> None:
        """Tell each of a group what became of it."""
        self._waiting -= len(outcomes)
        self._note([error for _, error in outcomes if error is not None])
        for commit, error in outcomes:
            if error is None:
                commit.done.callback(None)
            else:
                commit.done.errback(_refusal(error))

    def _answered(self, question: _Question[T], answer: T) -> None:
        self._asked -= 1
        if question.writes:
            self._note(())
        question.done.callback(answer)

    def _unanswered(self, question: _Question[Any], error: Exception) -> None:
        self._asked -= 1
        if question.writes:
            self._note([error])
            question.done.errback(_refusal(error))
            return
        self.log.error("{path}: can't be read: {error!r}", path=self._path, error=error)
        refusal = StoreFailed("the server can't read what it keeps at present")
        refusal.__cause__ = error
        question.done.errback(refusal)

    def _note(self, errors: Sequence[Exception]) -> None:
        """Log when the disk begins to fail and when it is well again, and each bad change."""
        ours = [error for error in errors if code_of(error) in _OURS]
        if ours and not self._failing:
            self.log.error("{path}: changes fail: {error!r}", path=self._path, error=ours[0])
        elif not errors and self._failing:
            self.log.info("{path}: changes are kept again", path=self._path)
        if ours or not errors:
            self._failing = bool(ours)
        for error in errors:
            if error not in ours:
                self.log.error(
                    "{path}: a change can't be kept: {error!r}", path=self._path, error=error
                )

    def _closed(self, error: Exception | None) -> None:
        if error is not None:
            self.log.error("{path}: could not be closed: {error!r}", path=self._path, error=error)
        if self._stopped is not None:
            self._stopped.callback(None)

    # In the writer's thread.

    def _work(self, database: Database) -> None:
        questions: deque[_Question[Any]] = deque()
        more = True
        while more or questions:
            group, more = self._gather(questions) if more else ([], False)
            for start in range(0, len(group), GROUP_MOST):
                outcomes = _write(database, group[start : start + GROUP_MOST])
                self._call_from_thread(self._settle, outcomes)
            # No more than one, so that commits need not wait for many.
            if questions:
                self._answer(database, questions.popleft())
        problem: Exception | None = None
        try:
            database.close()
        except Exception as error:
            problem = error
        self._call_from_thread(self._closed, problem)

    def _gather(self, questions: deque[_Question[Any]]) -> tuple[list[_Commit], bool]:
        """Take all that has come; wait for something if there is no question to answer.

        :param questions: those that have come are added
        :return: commits, and whether more can come
        """
        group: list[_Commit] = []
        try:
            job = self._queue.get(block=not questions)
            while job is not None:
                if isinstance(job, list):
                    group += job
                else:
                    questions.append(job)
                job = self._queue.get_nowait()
        except Empty:
            return group, True
        return group, False

    def _answer(self, database: Database, question: _Question[Any]) -> None:
        try:
            answer = question.work(database)
        except Exception as error:  # whatever it was, the thread must go on
            self._call_from_thread(self._unanswered, question, error)
        else:
            self._call_from_thread(self._answered, question, answer)


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
    """Drop one slice of what is older than this."""
    return _transact(database, partial(rows.prune, before=before, most=SLICE))


def _write(database: Database, group: Sequence[_Commit]) -> list[_Outcome]:
    """Keep a group in one transaction; if that fails, keep each by itself that can be kept."""
    error = _try(database, [change for commit in group for change in commit.changes])
    if error is None or len(group) == 1 or code_of(error) in _HOPELESS:
        return [(commit, error) for commit in group]
    outcomes: list[_Outcome] = []
    for index, commit in enumerate(group):
        error = _try(database, commit.changes)
        outcomes.append((commit, error))
        if error is not None and code_of(error) in _HOPELESS:
            outcomes.extend((later, error) for later in group[index + 1 :])
            break
    return outcomes


def _try(database: Database, changes: Sequence[Change]) -> Exception | None:
    """Keep changes; what failed, if it did. Whatever it was, the thread must go on."""
    try:
        _transact(database, partial(rows.write, changes=changes))
    except Exception as error:
        return error
    return None


def _transact(database: Database, work: Callable[[Connection], T]) -> T:
    """Do something in one transaction; if it fails, nothing of it is found later."""
    try:
        return _attempt(database, work)
    except Exception:
        if database.mark.void:
            _overwrite(database)
        raise


def _attempt(database: Database, work: Callable[[Connection], T]) -> T:
    connection = database.connection
    sequence = database.sequence + 1
    committing = False
    try:
        if connection.in_transaction:  # the one before could not be rolled back then
            connection.execute("ROLLBACK")
        connection.execute("BEGIN IMMEDIATE")
        done = work(connection)
        connection.execute("UPDATE store SET sequence = ?", (sequence,))
        committing = True
        connection.execute("COMMIT")
    except Exception as error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        # A commit that could not be synced may be found whole after a crash, though it was
        # refused; one for which there was no space is incomplete.
        if committing and code_of(error) != sqlite3.SQLITE_FULL:
            database.mark.make_void()
        raise
    database.sequence = sequence
    # It is durable now, whatever becomes of the mark: one that stays behind is still true.
    with suppress(OSError):
        database.mark.write(database.epoch, sequence)
    return done


def _overwrite(database: Database) -> None:
    """Write over what a commit that failed may have left in the log."""
    # If that fails too, the mark stays void until a transaction succeeds; a crash before that leads
    # to a new epoch.
    with suppress(sqlite3.Error, OSError):
        _attempt(database, lambda connection: None)


def _refusal(error: Exception) -> StoreFailed:
    """What a terminal may be told of an error: nothing of this machine's."""
    code = code_of(error)
    if code == sqlite3.SQLITE_FULL:
        text = "the server has no space left"
    elif code == sqlite3.SQLITE_BUSY:
        text = "busy"
    elif code in _HOPELESS:
        text = "the server can't keep changes at present"
    else:
        text = "this change can't be kept"
    refusal = StoreFailed(text)
    refusal.__cause__ = error
    return refusal
