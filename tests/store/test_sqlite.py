"""``sqlite:PATH`` keeps the promises of every store, durably, and many changes at a time."""

from __future__ import annotations

import itertools
import math
import sqlite3
from collections.abc import Awaitable, Iterator
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError
from twisted.logger import capturedLogs, formatEvent

from broker.interfaces import Change, IStore, State, StoreFailed
from broker.store import rows, sqlite
from broker.store.sqlite import SqliteStore
from broker.store.writer import GROUP_MOST
from broker.tables.accounts import AccountChange
from broker.tables.disclosures import Disclosure
from broker.tables.groups import GroupChange
from broker.tables.permits import Limit, PermitChange
from tests.store.contract import (
    EVER,
    StoreContract,
    changes,
    disclosure,
    held_of,
    made_of,
    told_of,
)
from tests.store.numbered import TOLD, commit_of
from tests.store.waiting import PATIENCE, Gate, Keeping, Stores, changes_of, failure, lists_of

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
        """The next process finds all that was kept, and the same epoch (A6, I8)."""
        store = self.new()
        self.result(store.commit(changes_of(Ia="Ib,Ic", Ib="Ia")))
        self.result(store.commit(changes_of(Ib="")))
        self.commit(store, AccountChange("Ia", "one", "0" * 16, ("anna",)), disclosure(1))
        self.commit(store, GroupChange("@a", ("Ia",)), GroupChange("@b", ()), disclosure(2))
        before = self.result(store.load())
        again = self.reopened(store)
        after = self.result(again.load())
        assert after.epoch == before.epoch
        assert lists_of(after) == {"Ia": "Ib,Ic"}
        assert held_of(after) == held_of(before)
        assert self.told(again) == [disclosure(2), disclosure(1)]

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

    @pytest.mark.parametrize("name", ["", '"],["', "' OR 1=1 --", "\n", "𠮷", "é"])
    def test_any_text(self, name: str) -> None:
        """A text comes back as it was, and is no other's (I4)."""
        store = self.new()
        given: list[Change] = [
            PermitChange("x" + name, (name, "b"), ((name, Limit(1.5, 2)),)),
            PermitChange("x", ("a",)),
            AccountChange("x" + name, "v" + name, "0" * 16, (name, "b")),
            AccountChange("x", "v", "1" * 16),
            GroupChange("@x" + name, (name, "b")),
            GroupChange("@x", ("a",)),
            Disclosure("x" + name, name, name, 1, name, name, 1, 1),
            disclosure(1, "x"),
        ]
        self.commit(store, *given)
        again = self.reopened(store)
        self.result(again.load())
        assert self.held(again) == made_of(given)
        for whose in {"x", "x" + name}:
            assert self.told(again, whose) == told_of(given, whose, EVER, 100)


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

    def test_a_statement_a_kind(self, stores: Stores) -> None:
        """However many changes a transaction holds, each kind of them is one statement."""
        keeping = Keeping()
        store, _ = stores.open(connect=keeping)
        done: list[Change] = []
        for number in range(1, 400):
            done += commit_of(number)
        keeping.last.said.clear()
        stores.pump.result(store.commit(done))
        said = [sql.split()[:3] for sql in keeping.last.said]
        # Begin, sequence, commit; what accounts, groups and policies say no more is dropped too.
        assert len(said) == 3 + 7
        assert said.count(["INSERT", "INTO", "disclosures"]) == 1
        assert said.count(["INSERT", "INTO", "permits"]) == 1


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
    def test_none_of_a_mixed_batch(self, stores: Stores, bad: Any) -> None:
        """Whatever can't be kept, nothing of its commit is, of whatever kind; the others are.

        Nor is anything kept that could not be read at the next start.
        """
        keeping = Keeping()
        store, _ = stores.open(connect=keeping)
        keeping.last.before = gate = Gate("COMMIT")
        first = store.commit([])
        stores.pump.turn()
        gate.reached()
        before = store.commit(commit_of(1))
        failing = [store.commit(mixed) for mixed in ([*commit_of(3), bad], [bad, *commit_of(3)])]
        after = store.commit(commit_of(2))
        gate.open.set()
        for done in (first, before, after):
            stores.pump.result(done)
        for done in failing:
            with pytest.raises(StoreFailed, match=r"^this change can't be kept$"):
                stores.pump.result(done)
        stores.stop(store)
        assert stores.commits()[1] == 2

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


class QuestionTests:
    """What is asked of the writer between its commits."""

    def test_sees_what_was_committed_before(self, stores: Stores) -> None:
        """A question sees every commit that was made before it, acknowledged or not."""
        store, _ = stores.open()
        for number in range(1, 4):
            store.commit(commit_of(number))
        found = stores.pump.result(store.disclosures(TOLD, EVER, 10))
        assert [one.at for one in found] == [3, 2, 1]

    def test_holds_up_no_commit(self, stores: Stores) -> None:
        """However many questions wait, a commit waits for one of them at most."""
        keeping = Keeping()
        store, _ = stores.open(connect=keeping)
        keeping.last.before = gate = Gate(rows.DISCLOSURES)
        keeping.last.said.clear()
        questions = [store.disclosures(TOLD, EVER, 10) for _ in range(5)]
        gate.reached()
        done = store.commit(commit_of(1))
        stores.pump.turn()
        gate.open.set()
        answers = [len(stores.pump.result(question)) for question in questions]
        stores.pump.result(done)
        said = keeping.last.said
        assert said[: said.index("COMMIT")].count(rows.DISCLOSURES) == 1
        assert answers == [0, 1, 1, 1, 1]

    def test_is_not_starved(self, stores: Stores) -> None:
        """Where commits never cease a question is answered all the same, after one group."""
        keeping = Keeping()
        store, _ = stores.open(connect=keeping)
        halts: SimpleQueue[Event] = SimpleQueue()

        def halt(sql: str) -> None:
            if sql == "COMMIT":
                go = Event()
                halts.put(go)
                assert go.wait(PATIENCE)

        keeping.last.before = halt
        keeping.last.said.clear()
        waiting = [store.commit(commit_of(1))]
        stores.pump.turn()
        question = store.disclosures(TOLD, EVER, 10)
        for number in range(2, 6):
            go = halts.get(timeout=PATIENCE)
            waiting.append(store.commit(commit_of(number)))
            while not stores.pump.idle:  # what has come is with the writer before it goes on
                stores.pump.turn()
            go.set()
        halts.get(timeout=PATIENCE).set()
        said = keeping.last.said
        assert said[: said.index(rows.DISCLOSURES)].count("COMMIT") <= 2
        for done in waiting:
            stores.pump.result(done)
        assert len(stores.pump.result(question)) in {1, 2}

    def test_too_many(self, stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
        """Beyond their cap questions are refused at once; commits are not (I15)."""
        monkeypatch.setattr(sqlite, "TASKS_MOST", 3)
        keeping = Keeping()
        store, _ = stores.open(connect=keeping)
        keeping.last.before = gate = Gate(rows.DISCLOSURES)
        waiting = [store.disclosures(TOLD, EVER, 10) for _ in range(3)]
        for asked in (store.disclosures(TOLD, EVER, 10), store.prune(1)):
            with pytest.raises(StoreFailed, match=r"^busy$"):
                stores.pump.result(asked)
        done = store.commit(commit_of(1))
        gate.open.set()
        for question in waiting:
            stores.pump.result(question)
        stores.pump.result(done)
        assert len(stores.pump.result(store.disclosures(TOLD, EVER, 10))) == 1

    def test_unreadable(self, stores: Stores) -> None:
        """What can't be read is said without a word of this machine; the log has it all (I18)."""
        keeping = Keeping()
        store, _ = stores.open(connect=keeping)

        def fail(sql: str) -> None:
            if sql == rows.DISCLOSURES:
                raise failure(IOERR, f"of {store._path}")

        keeping.last.before = fail
        with (
            capturedLogs() as logs,
            pytest.raises(StoreFailed, match=r"^the server can't read what it keeps at present$"),
        ):
            stores.pump.result(store.disclosures(TOLD, EVER, 10))
        (line,) = lines(logs)
        assert line.startswith(f"{store._path}: can't be read: ")
        keeping.last.before = lambda sql: None
        stores.pump.result(store.commit(commit_of(1)))
        assert len(stores.pump.result(store.disclosures(TOLD, EVER, 10))) == 1

    def test_answered_before_the_end(self, stores: Stores) -> None:
        """What was asked before the end is answered."""
        keeping = Keeping()
        store, _ = stores.open(connect=keeping)
        keeping.last.before = gate = Gate("COMMIT")
        store.commit(commit_of(1))
        questions = [store.disclosures(TOLD, EVER, 10) for _ in range(3)]
        gate.reached()
        stopping = store.stop()
        gate.open.set()
        assert [len(stores.pump.result(question)) for question in questions] == [1, 1, 1]
        stores.pump.result(stopping)

    @pytest.mark.parametrize(
        ("sql", "parameters", "index"),
        [
            (rows.DISCLOSURES, ("Ib", 1, 1), "USING INDEX disclosures_of_one (whose=? AND at<?)"),
            (rows.PRUNE, (1, 1), "USING COVERING INDEX disclosures_by_age (at<?)"),
        ],
    )
    def test_range_scans(
        self, stores: Stores, sql: str, parameters: tuple[Any, ...], index: str
    ) -> None:
        """Neither looks through the ledger, nor sorts it: an index has it in order."""
        keeping = Keeping()
        stores.open(connect=keeping)
        plan = keeping.last.real.execute(f"EXPLAIN QUERY PLAN {sql}", parameters)
        steps = [detail for *_, detail in plan]
        assert any(index in step for step in steps), steps
        assert not any("SCAN" in step or "TEMP B-TREE" in step for step in steps), steps


class PruneTests:
    """Old disclosures are dropped, a slice at a time."""

    @pytest.fixture(autouse=True)
    def _slices(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sqlite, "SLICE", 10)

    def filled(self, stores: Stores, **more: Any) -> tuple[SqliteStore, State]:
        """A store that holds numbered commits, 35 of them."""
        store, state = stores.open(**more)
        for number in range(1, 36):
            store.commit(commit_of(number))
        stores.pump.result(store.commit([]))
        return store, state

    def left(self, stores: Stores, store: SqliteStore) -> list[int]:
        """When those disclosures were that are left, the oldest first."""
        found = stores.pump.result(store.disclosures(TOLD, EVER, 100))
        return [one.at for one in reversed(found)]

    def test_in_slices(self, stores: Stores) -> None:
        """Each slice is a transaction, and commits that wait come before the next one."""
        keeping = Keeping()
        store, _ = self.filled(stores, connect=keeping)
        keeping.last.said.clear()
        keeping.last.before = gate = Gate("COMMIT")
        pruning = store.prune(31)
        gate.reached()
        between = store.commit(commit_of(36))
        stores.pump.turn()
        gate.open.set()
        assert stores.pump.result(pruning) == 30
        said = [sql for sql in keeping.last.said if sql in {rows.PRUNE, "COMMIT"}]
        assert said == [rows.PRUNE, "COMMIT", "COMMIT", *[rows.PRUNE, "COMMIT"] * 3]
        stores.pump.result(between)
        assert self.left(stores, store) == list(range(31, 37))

    def test_the_oldest_first(self, stores: Stores) -> None:
        """Stopped half-way it has dropped the oldest, says how many, and holds up no end."""
        keeping = Keeping()
        store, _ = self.filled(stores, connect=keeping)
        keeping.last.before = gate = Gate("COMMIT")
        pruning = store.prune(31)
        gate.reached()
        stopping = store.stop()
        gate.open.set()
        assert stores.pump.result(pruning) == 10
        stores.pump.result(stopping)
        store, _ = stores.open()
        assert self.left(stores, store) == list(range(11, 36))

    def test_lasts(self, stores: Stores) -> None:
        """What was dropped stays so after a crash, and the epoch stays: nothing else is lost."""
        store, state = self.filled(stores)
        assert stores.pump.result(store.prune(15)) == 14
        crashed(stores.folder, "1")
        again, after = stores.open("1.db")
        assert after.epoch == state.epoch
        assert held_of(after) == held_of(stores.pump.result(store.load()))
        assert self.left(stores, again) == list(range(15, 36))

    def test_an_older_copy(self, stores: Stores) -> None:
        """A copy from before a slice is an older one like any other, and has another epoch."""
        store, state = self.filled(stores)
        stores.stop(store)
        path = stores.folder / "broker.db"
        copy = path.read_bytes()
        store, _ = stores.open()
        stores.pump.result(store.prune(5))
        stores.stop(store)
        assert stores.look()[0] == state.epoch
        path.write_bytes(copy)
        assert stores.look()[0] != state.epoch

    @pytest.mark.parametrize("at", ["BEGIN IMMEDIATE", rows.PRUNE, "COMMIT"])
    def test_failed(self, stores: Stores, at: str) -> None:
        """Where the disk fails none of them went; when it is well they do. The log says both."""
        keeping = Keeping()
        store, state = self.filled(stores, connect=keeping)

        def fail(sql: str) -> None:
            if sql == at:
                raise failure(FULL)

        keeping.last.before = fail
        with capturedLogs() as logs:
            with pytest.raises(StoreFailed, match="no space left"):
                stores.pump.result(store.prune(15))
            keeping.last.before = lambda sql: None
            assert self.left(stores, store) == list(range(1, 36))
            assert stores.pump.result(store.prune(15)) == 14
        assert ["changes fail" in line for line in lines(logs)] == [True, False]
        stores.stop(store)
        assert stores.look()[0] == state.epoch

    def test_failed_half_way(self, stores: Stores) -> None:
        """Where a later slice fails it says how many went with those before."""
        keeping = Keeping()
        store, _ = self.filled(stores, connect=keeping)
        slices: list[str] = []

        def fail(sql: str) -> None:
            if sql == rows.PRUNE:
                slices.append(sql)
                if len(slices) == 3:
                    raise failure(FULL)

        keeping.last.before = fail
        with capturedLogs() as logs:
            assert stores.pump.result(store.prune(31)) == 20
        assert ["changes fail" in line for line in lines(logs)] == [True]
        assert self.left(stores, store) == list(range(21, 36))

    def test_refused_and_found_after_all(self, stores: Stores) -> None:
        """A slice of which it isn't known whether it is on the disk leads to a new epoch.

        Unless another transaction was written over it before the crash.
        """
        keeping = Keeping()
        store, state = self.filled(stores, connect=keeping)
        failing = 2

        def fail(sql: str) -> None:
            nonlocal failing
            if sql == "COMMIT" and failing:
                failing -= 1
                raise failure(IOERR)

        keeping.last.before = fail
        with pytest.raises(StoreFailed, match="at present"):
            stores.pump.result(store.prune(5))
        crashed(stores.folder, "1")
        assert stores.pump.result(store.prune(5)) == 4
        crashed(stores.folder, "2")
        assert stores.look("1.db")[0] != state.epoch
        assert stores.look("2.db")[0] == state.epoch


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
