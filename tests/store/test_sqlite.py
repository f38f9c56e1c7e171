"""``sqlite:PATH`` keeps the promises of every store, durably, and many changes at a time."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError
from twisted.logger import capturedLogs, formatEvent

from broker.interfaces import IStore, StoreFailed
from broker.store.sqlite import GROUP_MOST, SqliteStore
from broker.tables.permits import PermitChange
from tests.store.contract import StoreContract, changes, permits_of
from tests.store.waiting import Gate, Keeping, Stores, changes_of, failure, lists_of

T = TypeVar("T")
FULL, BUSY, IOERR = sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_IOERR


def lines(logs: Any) -> list[str]:
    """What a log says, a line an event."""
    return [formatEvent(event) for event in logs]


class SqliteStoreTests(StoreContract):
    """The suite over a store in a file."""

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> Iterator[None]:
        self.names = (f"{number}.db" for number in itertools.count())
        with Stores(tmp_path) as self.stores:
            yield

    def result(self, step: Awaitable[T]) -> T:
        return self.stores.pump.result(step)

    def new(self) -> IStore:
        store, _ = self.stores.open(next(self.names))
        return store

    def reopened(self, store: IStore) -> IStore:
        assert isinstance(store, SqliteStore)
        self.stores.stop(store)
        return self.stores.make(Path(store._path).name)

    def test_remembers(self) -> None:
        """The next process finds every list, and the same epoch (A6, I8)."""
        store = self.new()
        self.result(store.commit(changes_of(Ia="Ib,Ic", Ib="Ia")))
        self.result(store.commit(changes_of(Ib="")))
        before = self.result(store.load())
        after = self.result(self.reopened(store).load())
        assert after.epoch == before.epoch
        assert lists_of(after) == {"Ia": "Ib,Ic"}

    @settings(deadline=None, max_examples=25)
    @given(st.lists(st.lists(changes, max_size=4), max_size=12), st.integers(0, 12))
    def test_at_once_and_again(self, commits: list[list[PermitChange]], at: int) -> None:
        """Commits that wait for no other are kept in their order, across a restart (I9)."""
        store = self.new()
        model = {}
        done = store.commit([])
        for index, commit in enumerate(commits):
            if index == at:
                store = self.reopened(store)
                self.result(store.load())
            done = store.commit(commit)
            for change in commit:
                model[change.owner] = change.accepted
        self.result(done)
        expected = {owner: names for owner, names in model.items() if names}
        assert permits_of(self.result(store.load())) == expected
        assert permits_of(self.result(self.reopened(store).load())) == expected

    @pytest.mark.parametrize("name", ["", "a\0b", '"],["', "' OR 1=1 --", "\n", "𠮷", "é"])
    def test_any_text(self, name: str) -> None:
        """A text comes back as it was, and is no other's (I4)."""
        store = self.new()
        given = [PermitChange("x" + name, (name, "b")), PermitChange("x", ("a",))]
        self.result(store.commit(given))
        expected = {change.owner: change.accepted for change in given}
        assert permits_of(self.result(self.reopened(store).load())) == expected


class DurableTests:
    """When a change is acknowledged (I8)."""

    def test_after_the_commit(self, stores: Stores) -> None:
        """Nothing is said before COMMIT has returned."""
        keeping = Keeping()
        store, _ = stores.open(connect=keeping)
        keeping.last.before = gate = Gate("COMMIT")
        done = store.commit(changes_of(Ia="Ib"))
        stores.pump.turn()
        gate.reached()
        assert stores.pump.idle
        assert not done.called
        gate.open.set()
        stores.pump.result(done)

    def test_synced(self, stores: Stores) -> None:
        """Each commit is synced: the log is written ahead, and synchronous is FULL."""
        keeping = Keeping()
        store, _ = stores.open(connect=keeping)
        stores.commit(store, Ia="Ib")
        assert list(keeping.last.real.execute("PRAGMA journal_mode")) == [("wal",)]
        assert list(keeping.last.real.execute("PRAGMA synchronous")) == [(2,)]

    def test_in_a_group(self, stores: Stores) -> None:
        """What comes while it is at the disk is one transaction, and one call to the reactor."""
        keeping = Keeping()
        store, _ = stores.open(connect=keeping)
        keeping.last.before = gate = Gate("COMMIT")
        first = store.commit(changes_of(Ia="Ib"))
        stores.pump.turn()
        gate.reached()
        waiting = [store.commit(changes_of(**{f"I{n}": "Ia"})) for n in range(200)]
        keeping.last.said.clear()
        gate.open.set()
        for done in [first, *waiting]:
            stores.pump.result(done)
        assert stores.pump.calls == 4  # each group: handed over, and told
        assert keeping.last.said.count("COMMIT") == 1
        assert len(lists_of(stores.pump.result(store.load()))) == 201

    def test_groups_are_bounded(self, stores: Stores) -> None:
        """A transaction has its cap, and what is beyond it comes in the next (I15)."""
        keeping = Keeping()
        store, _ = stores.open(connect=keeping)
        keeping.last.before = gate = Gate("COMMIT")
        first = store.commit([])
        stores.pump.turn()
        gate.reached()
        waiting = [store.commit(changes_of(Ia=f"I{n}")) for n in range(GROUP_MOST + 1)]
        gate.open.set()
        for done in [first, *waiting]:
            stores.pump.result(done)
        assert keeping.last.said.count("COMMIT") == 3
        assert lists_of(stores.pump.result(store.load())) == {"Ia": f"I{GROUP_MOST}"}

    def test_nobody_waits_any_more(self, stores: Stores) -> None:
        """Who stops waiting for a change stops nothing: it is kept with the others of its group."""
        keeping = Keeping()
        store, _ = stores.open(connect=keeping)
        keeping.last.before = gate = Gate("COMMIT")
        given_up = store.commit(changes_of(Ia="Ib"))
        stores.pump.turn()
        gate.reached()
        given_up.cancel()
        gate.open.set()
        stores.commit(store, Ib="Ia")
        with pytest.raises(CancelledError):
            stores.pump.result(given_up)
        assert lists_of(stores.pump.result(store.load())) == {"Ia": "Ib", "Ib": "Ia"}


class FailingTests:
    """A change that can't be kept fails whole, and alone (A5, I9)."""

    def test_a_bad_one(self, stores: Stores) -> None:
        """One that no database takes fails; those of its group are kept in their order."""
        keeping = Keeping()
        store, _ = stores.open(connect=keeping)
        keeping.last.before = gate = Gate("COMMIT")
        first = store.commit(changes_of(Ia="Ib"))
        stores.pump.turn()
        gate.reached()
        good = store.commit(changes_of(Ia="Ic"))
        bad = store.commit([*changes_of(Ib="Ia"), PermitChange("I\ud800", ("Ia",))])
        better = store.commit(changes_of(Ia="Id"))
        gate.open.set()
        with capturedLogs() as logs:
            for done in (first, good, better):
                stores.pump.result(done)
            with pytest.raises(StoreFailed, match=r"^this change can't be kept$"):
                stores.pump.result(bad)
        assert lists_of(stores.pump.result(store.load())) == {"Ia": "Id"}
        (line,) = lines(logs)
        assert "a change can't be kept: UnicodeEncodeError" in line

    @pytest.mark.parametrize(
        ("code", "told"),
        [(FULL, "the server has no space left"), (BUSY, "busy"), (IOERR, "can't keep changes")],
    )
    @pytest.mark.parametrize("at", ["BEGIN IMMEDIATE", "COMMIT"])
    def test_the_disk(self, stores: Stores, code: int, told: str, at: str) -> None:
        """While the disk fails every change does; when it is well they are kept again.

        The log says both, once; a terminal learns nothing of this machine.
        """
        keeping = Keeping()
        store, state = stores.open(connect=keeping)
        stores.commit(store, Ia="Ib")

        def fail(sql: str) -> None:
            if sql == at:
                raise failure(code, f"of {store._path}")

        keeping.last.before = fail
        with capturedLogs() as logs:
            for _ in range(3):
                with pytest.raises(StoreFailed, match=told) as refused:
                    stores.commit(store, Ia="", Ib="Ia")
                assert store._path not in str(refused.value)
            keeping.last.before = lambda sql: None
            assert lists_of(stores.pump.result(store.load())) == {"Ia": "Ib"}
            stores.commit(store, Ic="Ib")
        assert ["changes fail" in line for line in lines(logs)] == [True, False]
        assert lines(logs)[1].endswith("changes are kept again")
        stores.stop(store)
        assert stores.look() == (state.epoch, {"Ia": "Ib", "Ic": "Ib"})

    def test_no_use_in_trying(self, stores: Stores) -> None:
        """Where another program holds the database, a group waits for it once, not each change."""
        keeping = Keeping()
        store, _ = stores.open(connect=keeping)
        gate = Gate("COMMIT")
        keeping.last.before = gate
        first = store.commit([])
        stores.pump.turn()
        gate.reached()
        waiting = [store.commit(changes_of(Ia=f"I{n}")) for n in range(9)]
        begun: list[str] = []

        def fail(sql: str) -> None:
            if sql == "BEGIN IMMEDIATE":
                begun.append(sql)
                raise failure(BUSY)

        keeping.last.before = fail
        gate.open.set()
        stores.pump.result(first)
        for done in waiting:
            with pytest.raises(StoreFailed, match=r"^busy$"):
                stores.pump.result(done)
        assert len(begun) == 1

    def test_refused_and_found_after_all(self, stores: Stores) -> None:
        """A commit of which it isn't known whether it is on the disk leads to a new epoch.

        Unless another was written over it before the crash, which the copied files stand for.
        """
        keeping = Keeping()
        store, state = stores.open(connect=keeping)
        stores.commit(store, Ia="Ib")

        def fail(sql: str) -> None:
            if sql == "COMMIT":
                raise failure(IOERR)

        keeping.last.before = fail
        with pytest.raises(StoreFailed):
            stores.commit(store, Ia="Ic")
        crashed(stores.folder, "1")
        keeping.last.before = lambda sql: None
        stores.commit(store, Ib="Ic")
        crashed(stores.folder, "2")
        assert stores.look("1.db")[0] != state.epoch
        assert stores.look("2.db") == (state.epoch, {"Ia": "Ib", "Ib": "Ic"})


def crashed(folder: Path, name: str) -> None:
    """Copy the files as they are at this moment, as a crash would leave them."""
    for suffix in ("", "-wal", "-mark"):
        (folder / f"{name}.db{suffix}").write_bytes((folder / f"broker.db{suffix}").read_bytes())


class BoundsTests:
    """What it takes in, and for how long."""

    def test_not_open(self, stores: Stores) -> None:
        """Before it is loaded it takes nothing; stopped then, it is closed at once."""
        store = stores.make()
        with pytest.raises(StoreFailed, match="closed"):
            stores.commit(store, Ia="Ib")
        stores.stop(store)
        with pytest.raises(StoreFailed, match="closed"):
            stores.pump.result(store.load())
        assert list(stores.folder.iterdir()) == []

    def test_busy(self, stores: Stores) -> None:
        """At its cap it refuses at once, and takes more when what waited is kept (I15)."""
        keeping = Keeping()
        store, _ = stores.open(connect=keeping, waiting_most=3)
        keeping.last.before = gate = Gate("COMMIT")
        waiting = [store.commit(changes_of(Ia=f"I{n}")) for n in range(3)]
        with pytest.raises(StoreFailed, match=r"^busy$"):
            stores.commit(store, Ib="Ia")
        gate.open.set()
        for done in waiting:
            stores.pump.result(done)
        stores.commit(store, Ic="Ia")
        assert lists_of(stores.pump.result(store.load())) == {"Ia": "I2", "Ic": "Ia"}

    def test_stop_keeps_what_waits(self, stores: Stores) -> None:
        """What was taken in before the end is kept; what comes after it is refused (I8)."""
        keeping = Keeping()
        store, state = stores.open(connect=keeping)
        keeping.last.before = gate = Gate("COMMIT")
        waiting = [store.commit(changes_of(**{f"I{n}": "Ia"})) for n in range(5)]
        stores.pump.turn()
        gate.reached()
        stopping, again = store.stop(), store.stop()
        with pytest.raises(StoreFailed, match="closed"):
            stores.commit(store, Ib="Ia")
        with pytest.raises(StoreFailed, match="closed"):
            stores.pump.result(store.load())
        assert not stopping.called
        gate.open.set()
        stores.pump.result(stopping)
        stores.pump.result(again)
        assert all(done.called for done in waiting)
        assert stores.look() == (state.epoch, {f"I{n}": "Ia" for n in range(5)})

    def test_leaves_one_file(self, stores: Stores) -> None:
        """Closed in good order, all is in the database itself, and the mark lies beside it."""
        store, _ = stores.open()
        stores.commit(store, Ia="Ib")
        stores.stop(store)
        names = {path.name for path in stores.folder.iterdir()}
        assert names == {"broker.db", "broker.db-mark"}
