"""``sqlite:PATH`` keeps the promises of every store, durably, and many changes at a time."""

from __future__ import annotations

import itertools
import math
import sqlite3
from collections.abc import Awaitable, Iterator
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError
from twisted.logger import capturedLogs, formatEvent

from broker.interfaces import Change, IStore, StoreFailed
from broker.store import rows, sqlite
from broker.store.sqlite import SqliteStore
from broker.store.writer import GROUP_MOST
from broker.tables.accounts import AccountChange
from broker.tables.disclosures import Disclosure
from broker.tables.groups import GroupChange
from broker.tables.permits import Limit, PermitChange
from tests.store.contract import (
    EVER,
    TOLD,
    StoreContract,
    changes,
    commit_of,
    disclosure,
    held_of,
    made_of,
    told_of,
)
from tests.store.waiting import PATIENCE, Gate, Stores, Watched, changes_of, failure

T = TypeVar("T")
FULL, BUSY, IOERR = sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_IOERR


def lines(logs: Any) -> list[str]:
    """What a log says, a line an event."""
    return [formatEvent(event) for event in logs]


def times(stores: Stores, store: SqliteStore) -> list[int]:
    """When the numbered commits were whose disclosures a store tells, the oldest first."""
    return [each.at for each in reversed(stores.pump.result(store.disclosures(TOLD, EVER, 99)))]


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

    @settings(deadline=None, max_examples=25)
    @given(st.lists(st.lists(changes, max_size=4), max_size=12), st.integers(0, 12))
    def test_at_once_and_again(self, commits: list[list[Change]], at: int) -> None:
        """Commits that wait for no other are kept in their order, across a restart (I9)."""
        store = self.new()
        made: list[Change] = []
        done = store.commit([])
        for index, commit in enumerate(commits):
            if index == at:
                store = self.reopened(store)
                self.result(store.load())
            done = store.commit(commit)
            made += commit
        self.result(done)
        for _ in range(2):
            assert self.held(store) == made_of(made)
            for whose in {one.owner for one in made if isinstance(one, Disclosure)}:
                assert self.told(store, whose) == told_of(made, whose, EVER, 100)
            store = self.reopened(store)
            self.result(store.load())


class DurableTests:
    """When a change is acknowledged (I8)."""

    def test_in_a_group(self, stores: Stores, watched: Watched) -> None:
        """What comes while it is at the disk is one transaction, and one call to the reactor.

        Nothing is said before COMMIT has returned. A transaction has its cap, and what is beyond it
        comes in the next (I15).
        """
        with watched.halted(changes_of(Ia="Ib")) as first:
            assert stores.pump.idle
            assert not first.called
            waiting = [
                watched.store.commit(changes_of(**{f"I{n}": f"I{n}"}))
                for n in range(GROUP_MOST + 1)
            ]
            watched.connection.said.clear()
        for done in [first, *waiting]:
            watched.result(done)
        assert stores.pump.calls == 5  # handed over: the first, and all others; told: each group
        assert watched.connection.said.count("COMMIT") == 2
        assert len(watched.lists()) == GROUP_MOST + 2

    def test_cancelled(self, watched: Watched) -> None:
        """Whoever stops waiting for a change stops nothing: it is kept with its group."""
        with watched.halted(changes_of(Ia="Ib")) as given_up:
            given_up.cancel()
        watched.commit(Ib="Ia")
        with pytest.raises(CancelledError):
            watched.result(given_up)
        assert watched.lists() == {"Ia": "Ib", "Ib": "Ia"}

    def test_a_statement_a_kind(self, watched: Watched) -> None:
        """However many changes a transaction holds, each kind of them is one statement."""
        many = [change for number in range(1, 400) for change in commit_of(number)]
        watched.connection.said.clear()
        watched.result(watched.store.commit(many))
        said = [sql.split()[:3] for sql in watched.connection.said]
        # Begin, sequence, commit; accounts, groups and policies that are the default are deleted.
        assert len(said) == 3 + 7
        assert said.count(["INSERT", "INTO", "disclosures"]) == 1
        assert said.count(["INSERT", "INTO", "permits"]) == 1


class FailingTests:
    """A change that can't be kept fails whole, and alone (A5, I9)."""

    @pytest.mark.parametrize(
        "bad",
        [
            PermitChange("I\ud800", ("Ia",)),
            PermitChange("I\0x", ("Ia",)),
            PermitChange("Ix", ("I\0a",)),
            PermitChange("Ix", ("Ia",), (("Ia", Limit(math.inf, 1)),)),
            PermitChange("Ix", ("Ia",), (("Ia", Limit(1, 0)),)),
            AccountChange("I\ud800", "v", "0" * 16),
            AccountChange("I\ud800", None),
            AccountChange("Ix", "", "0" * 16),
            AccountChange("Ix", "v", "not hexadecimal."),
            GroupChange("@a", ("I\ud800",)),
            GroupChange("a", ("Ia",)),
            disclosure(3, "I\ud800"),
            "Ia",
        ],
    )
    def test_none_of_a_mixed_batch(self, stores: Stores, watched: Watched, bad: Any) -> None:
        """Whatever can't be kept, nothing of its commit is, of whatever kind; the others are.

        Nor is anything kept that could not be read at the next start. The log has each.
        """
        commit = watched.store.commit
        with watched.halted() as first:
            before = commit(commit_of(1))
            failing = [commit(mixed) for mixed in ([*commit_of(3), bad], [bad, *commit_of(3)])]
            after = commit(commit_of(2))
        with capturedLogs() as logs:
            for done in (first, before, after):
                watched.result(done)
            for done in failing:
                with pytest.raises(StoreFailed, match=r"^this change can't be kept$"):
                    watched.result(done)
        assert ["a change can't be kept: " in line for line in lines(logs)] == [True, True]
        stores.stop(watched.store)
        assert stores.commits()[1] == 2

    @pytest.mark.parametrize(
        ("code", "told"),
        [(FULL, "the server has no space left"), (BUSY, "busy"), (IOERR, "can't keep changes")],
    )
    @pytest.mark.parametrize("at", ["BEGIN IMMEDIATE", "COMMIT"])
    def test_the_disk(
        self, stores: Stores, watched: Watched, code: int, told: str, at: str
    ) -> None:
        """While the disk fails every change does, and none is deleted; when it works they are.

        The log says both, once; a terminal learns nothing of this machine.
        """
        watched.result(watched.store.commit([*changes_of(Ia="Ib"), disclosure(1)]))
        path = watched.store._path
        with capturedLogs() as logs:
            with watched.failing(code, at, f"of {path}"):
                for _ in range(3):
                    with pytest.raises(StoreFailed, match=told) as refused:
                        watched.commit(Ia="", Ib="Ia")
                    assert path not in str(refused.value)
                with pytest.raises(StoreFailed, match=told):
                    watched.result(watched.store.prune(5))
            assert watched.lists() == {"Ia": "Ib"}
            assert times(stores, watched.store) == [1]
            watched.commit(Ic="Ib")
        assert ["changes fail" in line for line in lines(logs)] == [True, False]
        assert lines(logs)[1].endswith("changes are kept again")
        assert watched.result(watched.store.prune(5)) == 1
        stores.stop(watched.store)
        assert stores.look() == (watched.state.epoch, {"Ia": "Ib", "Ic": "Ib"})

    def test_no_use_in_trying(self, watched: Watched) -> None:
        """Where another program holds the database, a group waits for it once, not each change."""
        with ExitStack() as until_the_end:
            with watched.halted() as first:
                waiting = [watched.store.commit(changes_of(Ia=f"I{n}")) for n in range(9)]
                begun = until_the_end.enter_context(watched.failing(BUSY, "BEGIN IMMEDIATE"))
            watched.result(first)
            for done in waiting:
                with pytest.raises(StoreFailed, match=r"^busy$"):
                    watched.result(done)
        assert len(begun) == 1


class TaskTests:
    """What is asked of the writer between its commits."""

    def test_sees_what_was_committed_before(self, watched: Watched) -> None:
        """A query sees every commit that was made before it, acknowledged or not."""
        for number in range(1, 4):
            watched.store.commit(commit_of(number))
        assert [each.at for each in watched.told()] == [3, 2, 1]

    def test_holds_up_no_commit(self, stores: Stores, watched: Watched) -> None:
        """However many tasks wait, a commit waits for one of them at most."""
        watched.connection.before = gate = Gate(rows.DISCLOSURES)
        watched.connection.said.clear()
        tasks = [watched.store.disclosures(TOLD, EVER, 10) for _ in range(5)]
        gate.reached()
        done = watched.store.commit(commit_of(1))
        stores.pump.turn()
        gate.open.set()
        answers = [len(watched.result(task)) for task in tasks]
        watched.result(done)
        said = watched.connection.said
        assert said[: said.index("COMMIT")].count(rows.DISCLOSURES) == 1
        assert answers == [0, 1, 1, 1, 1]

    def test_is_not_starved(self, stores: Stores, watched: Watched) -> None:
        """Where commits never cease a query is answered too, after one group."""
        halts: SimpleQueue[Event] = SimpleQueue()

        def halt(sql: str) -> None:
            if sql == "COMMIT":
                go = Event()
                halts.put(go)
                assert go.wait(PATIENCE)

        watched.connection.before = halt
        watched.connection.said.clear()
        waiting = [watched.store.commit(commit_of(1))]
        stores.pump.turn()
        task = watched.store.disclosures(TOLD, EVER, 10)
        for number in range(2, 6):
            go = halts.get(timeout=PATIENCE)
            waiting.append(watched.store.commit(commit_of(number)))
            while not stores.pump.idle:  # what has come is with the writer before it goes on
                stores.pump.turn()
            go.set()
        halts.get(timeout=PATIENCE).set()
        said = watched.connection.said
        assert said[: said.index(rows.DISCLOSURES)].count("COMMIT") <= 2
        for done in waiting:
            watched.result(done)
        assert len(watched.result(task)) in {1, 2}

    def test_too_many(self, watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
        """Beyond their cap tasks are refused at once; commits are not (I15)."""
        monkeypatch.setattr(sqlite, "TASKS_MOST", 3)
        store = watched.store
        watched.connection.before = gate = Gate(rows.DISCLOSURES)
        waiting = [store.disclosures(TOLD, EVER, 10) for _ in range(3)]
        for asked in (store.disclosures(TOLD, EVER, 10), store.prune(1)):
            with pytest.raises(StoreFailed, match=r"^busy$"):
                watched.result(asked)
        done = store.commit(commit_of(1))
        gate.open.set()
        for task in waiting:
            watched.result(task)
        watched.result(done)
        assert len(watched.told()) == 1

    def test_unreadable(self, watched: Watched) -> None:
        """What can't be read is said without a word of this machine; the log has it all (I18)."""
        path = watched.store._path
        with (
            watched.failing(IOERR, rows.DISCLOSURES, f"of {path}"),
            capturedLogs() as logs,
            pytest.raises(StoreFailed, match=r"^the server can't read what it keeps at present$"),
        ):
            watched.told()
        (line,) = lines(logs)
        assert line.startswith(f"{path}: can't be read: ")
        watched.result(watched.store.commit(commit_of(1)))
        assert len(watched.told()) == 1

    @pytest.mark.parametrize(
        ("sql", "parameters", "index"),
        [
            (rows.DISCLOSURES, ("Ib", 1, 1), "USING INDEX disclosures_of_one (whose=? AND at<?)"),
            (rows.PRUNE, (1, 1), "USING COVERING INDEX disclosures_by_age (at<?)"),
        ],
    )
    def test_range_scans(
        self, watched: Watched, sql: str, parameters: tuple[Any, ...], index: str
    ) -> None:
        """Neither looks through the ledger, nor sorts it: an index has it in order."""
        plan = watched.connection.real.execute(f"EXPLAIN QUERY PLAN {sql}", parameters)
        steps = [detail for *_, detail in plan]
        assert any(index in step for step in steps), steps
        assert not any("SCAN" in step or "TEMP B-TREE" in step for step in steps), steps


class PruneTests:
    """Old disclosures are deleted, a slice at a time."""

    @pytest.fixture
    def watched(self, stores: Stores, monkeypatch: pytest.MonkeyPatch) -> Watched:
        """A store that holds numbered commits, 35 of them, and deletes ten at a time."""
        monkeypatch.setattr(sqlite, "SLICE", 10)
        watched = Watched(stores)
        for number in range(1, 36):
            watched.store.commit(commit_of(number))
        watched.result(watched.store.commit([]))
        return watched

    def test_in_slices(self, stores: Stores, watched: Watched) -> None:
        """Each slice is a transaction, and commits that wait come before the next one."""
        watched.connection.said.clear()
        watched.connection.before = gate = Gate("COMMIT")
        pruning = watched.store.prune(31)
        gate.reached()
        between = watched.store.commit(commit_of(36))
        stores.pump.turn()
        gate.open.set()
        assert watched.result(pruning) == 30
        said = [sql for sql in watched.connection.said if sql in {rows.PRUNE, "COMMIT"}]
        assert said == [rows.PRUNE, "COMMIT", "COMMIT", *[rows.PRUNE, "COMMIT"] * 3]
        watched.result(between)
        assert times(stores, watched.store) == list(range(31, 37))

    def test_the_oldest_first(self, stores: Stores, watched: Watched) -> None:
        """Stopped half-way it has deleted the oldest, says how many, and holds up no end."""
        watched.connection.before = gate = Gate("COMMIT")
        pruning = watched.store.prune(31)
        gate.reached()
        stopping = watched.store.stop()
        gate.open.set()
        assert watched.result(pruning) == 10
        watched.result(stopping)
        store, _ = stores.open()
        assert times(stores, store) == list(range(11, 36))

    def test_failed_half_way(self, stores: Stores, watched: Watched) -> None:
        """Where a later slice fails it says how many were deleted with those before."""
        slices: list[str] = []

        def fail(sql: str) -> None:
            if sql == rows.PRUNE:
                slices.append(sql)
                if len(slices) == 3:
                    raise failure(FULL)

        watched.connection.before = fail
        with capturedLogs() as logs:
            assert watched.result(watched.store.prune(31)) == 20
        assert ["changes fail" in line for line in lines(logs)] == [True]
        assert times(stores, watched.store) == list(range(21, 36))

    def test_refused_and_found_after_all(self, stores: Stores, watched: Watched) -> None:
        """A slice of which it isn't known whether it is on the disk leads to a new epoch.

        Unless another transaction was written over it before the crash: then what was deleted stays
        so, and nothing else is lost.
        """
        # The second failure is of the transaction that is written over the first.
        with watched.failing(IOERR, "COMMIT") as failed:
            with pytest.raises(StoreFailed, match="at present"):
                watched.result(watched.store.prune(5))
            assert len(failed) == 2
        stores.crash("1.db")
        assert watched.result(watched.store.prune(5)) == 4
        stores.crash("2.db")
        assert stores.look("1.db")[0] != watched.state.epoch
        again, after = stores.open("2.db")
        assert after.epoch == watched.state.epoch
        assert held_of(after) == held_of(watched.result(watched.store.load()))
        assert times(stores, again) == list(range(5, 36))


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
        watched = Watched(stores, waiting_most=3)
        with watched.halted():
            waiting = [watched.store.commit(changes_of(Ia=f"I{n}")) for n in range(2)]
            with pytest.raises(StoreFailed, match=r"^busy$"):
                watched.commit(Ib="Ia")
        for done in waiting:
            watched.result(done)
        watched.commit(Ic="Ia")
        assert watched.lists() == {"Ia": "I1", "Ic": "Ia"}

    def test_stop_keeps_what_waits(self, stores: Stores, watched: Watched) -> None:
        """What was taken in before the end is kept, and what was asked is answered (I8).

        What comes after it is refused.
        """
        waiting = [watched.store.commit(changes_of(**{f"I{n}": "Ia"})) for n in range(5)]
        with watched.halted([disclosure(1)]):
            tasks = [watched.store.disclosures(TOLD, EVER, 10) for _ in range(3)]
            stopping, again = watched.store.stop(), watched.store.stop()
            with pytest.raises(StoreFailed, match="closed"):
                watched.commit(Ib="Ia")
            with pytest.raises(StoreFailed, match="closed"):
                watched.result(watched.store.load())
            assert not stopping.called
        assert [len(watched.result(task)) for task in tasks] == [1, 1, 1]
        watched.result(stopping)
        watched.result(again)
        assert all(done.called for done in waiting)
        assert stores.look() == (watched.state.epoch, {f"I{n}": "Ia" for n in range(5)})
