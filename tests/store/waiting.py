"""The reactor's side of a store: a queue in place of a reactor, and connections that do as told."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event
from typing import Any, Final, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from zope.interface import implementer

from broker.interfaces import Change, State
from broker.store.connection import Connection, connect
from broker.store.sqlite import SqliteStore
from broker.tables.disclosures import Disclosure
from broker.tables.permits import PermitChange
from tests.store.contract import EVER, TOLD, TOLD_MOST, commits_in
from tests.support.clock import result_of

T = TypeVar("T")
#: Seconds after which something that should happen is taken for hung.
PATIENCE: Final = 120.0


@implementer(IReactorFromThreads)
class Pump:
    """Calls from other threads, which are made when a test waits for something.

    :ivar calls: how many there have been
    """

    def __init__(self) -> None:
        self.calls = 0
        self._queue: SimpleQueue[tuple[Callable[..., object], tuple[Any, ...]]] = SimpleQueue()

    def callFromThread(
        self, callable: Callable[..., object], *args: object, **kwargs: object
    ) -> None:
        assert not kwargs
        self._queue.put((callable, args))

    @property
    def idle(self) -> bool:
        """Whether no call waits."""
        return self._queue.empty()

    def turn(self) -> None:
        """Make the next call; wait for it if need be."""
        try:
            function, arguments = self._queue.get(timeout=PATIENCE)
        except Empty:
            raise AssertionError("nothing happens") from None
        self.calls += 1
        function(*arguments)

    def result(self, step: Awaitable[T]) -> T:
        """What a step gives, once it does."""
        return result_of(step, self.turn)


class Stores(ExitStack):
    """The stores of one test, which are stopped with it."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.pump = Pump()

    def make(self, name: str = "broker.db", **more: Any) -> SqliteStore:
        """A store, not opened."""
        store = SqliteStore(str(self.folder / name), self.pump, os.urandom, **more)
        self.callback(self.stop, store)
        return store

    def open(self, name: str = "broker.db", **more: Any) -> tuple[SqliteStore, State]:
        """A store, and what it holds."""
        store = self.make(name, **more)
        return store, self.pump.result(store.load())

    def stop(self, store: SqliteStore) -> None:
        """Stop a store, and wait until it is closed."""
        self.pump.result(store.stop())

    def commit(self, store: SqliteStore, **lists: str) -> None:
        """Commit lists, and wait: ``Ia="Ib,Ic"``."""
        self.pump.result(store.commit(changes_of(**lists)))

    def crash(self, name: str, source: str = "broker.db") -> Path:
        """Copy a database as it is at this moment, as a crash would leave it; give the copy."""
        for suffix in ("", "-wal", "-mark"):
            content = (self.folder / f"{source}{suffix}").read_bytes()
            (self.folder / f"{name}{suffix}").write_bytes(content)
        return self.folder / name

    def commits(self, name: str = "broker.db") -> tuple[str, int]:
        """What a store that is closed holds of numbered commits: its epoch, and the last one."""
        store, state = self.open(name)
        told = self.pump.result(store.disclosures(TOLD, EVER, TOLD_MOST))
        self.stop(store)
        return state.epoch, commits_in(state, told)

    def look(self, name: str = "broker.db") -> tuple[str, dict[str, str]]:
        """What a store that is closed holds, as the next process finds it: epoch and lists."""
        store, state = self.open(name)
        self.stop(store)
        return state.epoch, lists_of(state)


def changes_of(**lists: str) -> list[PermitChange]:
    """Changes: ``Ia="Ib,Ic"``."""
    return [
        PermitChange(owner, tuple(names.split(",") if names else ()))
        for owner, names in lists.items()
    ]


def lists_of(state: State) -> dict[str, str]:
    """The lists of a state: ``{"Ia": "Ib,Ic"}``."""
    return {change.owner: ",".join(change.accepted) for change in state.permits}


class Obedient:
    """A connection that asks a test before each statement.

    :ivar said: all statements so far
    :ivar before: called with each statement
    """

    def __init__(self, path: str, pragmas: Mapping[str, int]) -> None:
        self.said: list[str] = []
        self.before: Callable[[str], object] = lambda sql: None
        self.real = connect(path)
        for name, value in pragmas.items():
            list(self.real.execute(f"PRAGMA {name} = {value}"))

    @property
    def in_transaction(self) -> bool:
        return self.real.in_transaction

    def execute(self, sql: str, parameters: Any = (), /) -> Iterable[Any]:
        self.said.append(sql)
        self.before(sql)
        return self.real.execute(sql, parameters)

    def executemany(self, sql: str, parameters: Any, /) -> object:
        self.said.append(sql)
        self.before(sql)
        return self.real.executemany(sql, parameters)

    def close(self) -> None:
        self.real.close()


class Gate:
    """Where the writer's thread halts.

    :ivar at: set when it has come to the gate
    :ivar open: to be set for it to go on
    """

    def __init__(self, sql: str) -> None:
        self._sql = sql
        self.at = Event()
        self.open = Event()

    def __call__(self, sql: str) -> None:
        """Halt before this statement, once."""
        if sql == self._sql and not self.open.is_set():
            self.at.set()
            assert self.open.wait(PATIENCE)

    def reached(self) -> None:
        """Wait until it has come."""
        assert self.at.wait(PATIENCE)


class Keeping:
    """A factory that keeps the connections it makes.

    :ivar made: all of them; the last is the store's, those before it made the database
    """

    def __init__(self, **pragmas: int) -> None:
        self.made: list[Obedient] = []
        self._pragmas = pragmas

    def __call__(self, path: str) -> Connection:
        self.made.append(Obedient(path, self._pragmas))
        return self.made[-1]

    @property
    def last(self) -> Obedient:
        """The store's."""
        return self.made[-1]


class Watched:
    """An open store and its connection, which a test halts or makes fail.

    :ivar state: what it held when it was opened
    """

    def __init__(self, stores: Stores, **more: Any) -> None:
        self._stores = stores
        keeping = Keeping()
        self.store, self.state = stores.open(connect=keeping, **more)
        self.connection = keeping.last

    def result(self, step: Awaitable[T]) -> T:
        """What a step gives, once it does."""
        return self._stores.pump.result(step)

    def commit(self, **lists: str) -> None:
        """Commit lists, and wait: ``Ia="Ib,Ic"``."""
        self._stores.commit(self.store, **lists)

    def told(self) -> list[Disclosure]:
        """What it tells of numbered commits, the newest first."""
        return list(self.result(self.store.disclosures(TOLD, EVER, TOLD_MOST)))

    def lists(self) -> dict[str, str]:
        """Its lists."""
        return lists_of(self.result(self.store.load()))

    @contextmanager
    def halted(
        self, changes: Sequence[Change] = (), at: str = "COMMIT"
    ) -> Iterator[Deferred[None]]:
        """Keep the writer at a statement of a commit, which is done when this ends."""
        self.connection.before = gate = Gate(at)
        first = self.store.commit(changes)
        self._stores.pump.turn()
        gate.reached()
        yield first
        gate.open.set()

    @contextmanager
    def failing(self, code: int, at: str, text: str = "made to fail") -> Iterator[list[str]]:
        """Make a statement fail; give how often it did."""
        failed: list[str] = []

        def fail(sql: str) -> None:
            if sql == at:
                failed.append(sql)
                raise failure(code, text)

        self.connection.before = fail
        yield failed
        self.connection.before = lambda sql: None


def failure(code: int, text: str = "made to fail") -> sqlite3.Error:
    """An error of SQLite's."""
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code
    return error
