"""Power fails: nothing acknowledged is lost, because every commit is synced.

The very statements of the store are run over a disk that loses what was not synced. That they do
without loss would say nothing if the same test didn't lose with ``synchronous = NORMAL``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Final

import apsw
import pytest
from twisted.internet.defer import Deferred

from broker.interfaces import StoreFailed
from broker.store import sqlite
from tests.store.contract import EVER, held_of
from tests.store.lossy import Apsw, Disk, survivors
from tests.store.numbered import TOLD, commit_of
from tests.store.waiting import Stores, changes_of

#: How the store says that every commit is synced.
FULL: Final = "PRAGMA synchronous = FULL"
#: How often power fails in each test; more often shows more.
FAILURES: Final = int(os.environ.get("BROKER_POWER_FAILURES", "30"))
#: How many disclosures there are to prune, all but one.
PRUNED: Final = 60


class Powered:
    """A store on such a disk, in a folder of its own."""

    def __init__(self, folder: Path, instead: dict[str, str] | None = None) -> None:
        self.before, self.after = folder / "before", folder / "after"
        self.before.mkdir(parents=True)
        self.after.mkdir()
        self.disk = Disk()
        self._instead = instead or {}
        self.connections: list[Apsw] = []

    def connect(self, path: str) -> Apsw:
        """The factory that the store is given."""
        connection = Apsw(path, self.disk, self._instead)
        connection.execute("PRAGMA wal_autocheckpoint = 25")  # that the log is written back often
        connection.said.clear()
        self.connections.append(connection)
        return connection

    @contextmanager
    def running(self) -> Iterator[Stores]:
        """Stores on this disk."""
        with Stores(self.before) as stores:
            yield stores
        self.disk.unregister()

    def commits(self) -> tuple[str, int]:
        """What the next process finds of numbered commits: epoch, and the last one."""
        with Stores(self.after) as stores:
            return stores.commits()

    def found(self) -> tuple[str, dict[str, str]]:
        """What the next process finds after the power failure: epoch and lists."""
        with Stores(self.after) as stores:
            return stores.look()


def power_failure(folder: Path, seed: int, instead: dict[str, str]) -> tuple[int, int, bool]:
    """Commit under load until power fails at some write or sync.

    :return: the last commit that was acknowledged, how many were found, and whether the epoch is
        the one that it was
    """
    randomness = Random(seed)
    powered = Powered(folder, instead)
    disk, acknowledged = powered.disk, [0]
    with powered.running() as stores:
        store, state = stores.open(connect=powered.connect)
        assert FULL in powered.connections[-1].said
        last = disk.operations + randomness.randrange(1, 300)
        failed = False

        def fail(kind: str, path: str) -> None:
            nonlocal failed
            if not failed and disk.operations >= last:
                failed = True
                disk.fail_power(powered.after, survivors(randomness))
            if failed:
                raise apsw.exception_for(apsw.SQLITE_IOERR)

        disk.before = fail
        number = 0
        while not failed:
            wave: list[Deferred[None]] = []
            for _ in range(randomness.choice((1, 4, 30))):
                number += 1
                wave.append(store.commit(commit_of(number)))
                wave[-1].addCallback(partial(lambda number, _: acknowledged.append(number), number))
            for done in wave:
                try:
                    stores.pump.result(done)
                except StoreFailed:
                    assert failed
    epoch, last = powered.commits()
    return acknowledged[-1], last, epoch == state.epoch


def pruned(folder: Path, randomness: Random) -> tuple[int, list[int], bool]:
    """Prune until power fails at some write or sync.

    :return: how many were said to have gone, the times of those found, the oldest first, and
        whether all else is as it was
    """
    powered = Powered(folder)
    disk = powered.disk
    with powered.running() as stores:
        store, before = stores.open(connect=powered.connect)
        for number in range(1, PRUNED + 1):
            store.commit(commit_of(number))
        before = stores.pump.result(store.load())
        last = disk.operations + randomness.randrange(1, 60)
        failed = False

        def fail(kind: str, path: str) -> None:
            nonlocal failed
            if not failed and disk.operations >= last:
                failed = True
                disk.fail_power(powered.after, survivors(randomness))
            if failed:
                raise apsw.exception_for(apsw.SQLITE_IOERR)

        disk.before = fail
        try:
            said = stores.pump.result(store.prune(PRUNED))
        except StoreFailed:
            said = 0
        if not failed:  # it was done sooner
            disk.fail_power(powered.after, survivors(randomness))
    with Stores(powered.after) as stores:
        store, after = stores.open()
        told = stores.pump.result(store.disclosures(TOLD, EVER, PRUNED))
    same = after.epoch == before.epoch and held_of(after) == held_of(before)
    return said, [one.at for one in reversed(told)], same


class PowerTests:
    """Power fails at some moment."""

    def test_full(self, tmp_path: Path) -> None:
        """All that was acknowledged is found, in whole commits, and the epoch stays (I8, I9)."""
        acknowledged = 0
        for seed in range(FAILURES):
            said, found, same = power_failure(tmp_path / str(seed), seed, {})
            assert found >= said, seed
            assert same, seed
            acknowledged += said
        assert acknowledged > 10 * FAILURES

    def test_while_pruning(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What was said to be dropped is gone, the oldest first; nothing else is, nor the epoch."""
        monkeypatch.setattr(sqlite, "SLICE", 5)
        cut = []
        for seed in range(FAILURES):
            said, left, same = pruned(tmp_path / str(seed), Random(seed))
            assert left == list(range(PRUNED + 1 - len(left), PRUNED + 1)), seed
            assert PRUNED - len(left) >= said, seed
            assert same, seed
            cut.append(PRUNED - len(left))
        assert any(0 < gone < PRUNED - 1 for gone in cut)

    def test_normal(self, tmp_path: Path) -> None:
        """Without a sync for each commit changes are lost; the mark knows, and the epoch changes.

        So the test above can fail.
        """
        lost = 0
        for seed in range(FAILURES):
            instead = {FULL: "PRAGMA synchronous = NORMAL"}
            said, found, same = power_failure(tmp_path / str(seed), seed, instead)
            lost += found < said
            assert found >= said or not same, seed
        assert lost > FAILURES // 4


class DiskTests:
    """The disk fails, and the power does not."""

    def test_no_space(self, tmp_path: Path) -> None:
        """No space for the log: the change is refused, and kept once there is some (A5, I8)."""
        powered = Powered(tmp_path)
        with powered.running() as stores:
            store, state = stores.open(connect=powered.connect)
            stores.commit(store, Ia="Ib")

            def fail(kind: str, path: str) -> None:
                if kind == "write" and path.endswith("-wal"):
                    raise apsw.exception_for(apsw.SQLITE_FULL)

            powered.disk.before = fail
            with pytest.raises(StoreFailed, match="no space left"):
                stores.commit(store, Ia="Ic")
            powered.disk.before = lambda kind, path: None
            stores.commit(store, Ib="Ic")
            powered.disk.fail_power(powered.after, lambda: True)
        assert powered.found() == (state.epoch, {"Ia": "Ib", "Ib": "Ic"})

    @pytest.mark.parametrize("syncs", [1, 2])
    def test_refused_but_written(self, tmp_path: Path, syncs: int) -> None:
        """A commit that was written and not synced is refused, and doesn't come back silently.

        Where a later transaction could be written it is gone; where none could, the epoch changes
        (I5, I9).
        """
        powered = Powered(tmp_path)
        with powered.running() as stores:
            store, state = stores.open(connect=powered.connect)
            stores.commit(store, Ia="Ib")
            failing = syncs

            def fail(kind: str, path: str) -> None:
                nonlocal failing
                if kind == "sync" and failing:
                    failing -= 1
                    raise apsw.exception_for(apsw.SQLITE_IOERR)

            powered.disk.before = fail
            with pytest.raises(StoreFailed, match="at present"):
                stores.pump.result(store.commit(changes_of(Ia="Ic", Ib="Ic")))
            powered.disk.fail_power(powered.after, lambda: True)
        epoch, lists = powered.found()
        if syncs == 1:
            assert (epoch, lists) == (state.epoch, {"Ia": "Ib"})
        else:
            assert epoch != state.epoch
