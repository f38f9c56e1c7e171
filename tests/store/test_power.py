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
from tests.store.contract import EVER, TOLD, commit_of, held_of
from tests.store.lossy import Apsw, Disk, survivors
from tests.store.waiting import Stores, changes_of

#: How the store says that every commit is synced.
FULL: Final = "PRAGMA synchronous = FULL"
#: How often power fails in each test; more often shows more.
FAILURES: Final = int(os.environ.get("BROKER_POWER_FAILURES", "30"))
#: How many disclosures there are to prune, all but one.
PRUNED: Final = 60


class Powered:
    """A store on such a disk, in a folder of its own.

    :ivar failed: power has failed
    :ivar after: what the next process finds
    """

    def __init__(self, folder: Path, seed: int = 0, instead: dict[str, str] | None = None) -> None:
        self._before = folder / "before"
        self._before.mkdir(parents=True)
        (folder / "after").mkdir()
        self.after = Stores(folder / "after")
        self.disk = Disk()
        self.failed = False
        self.randomness = Random(seed)
        self._instead = instead or {}

    def connect(self, path: str) -> Apsw:
        """The factory that the store is given."""
        connection = Apsw(path, self.disk, self._instead)
        connection.execute("PRAGMA wal_autocheckpoint = 25")  # that the log is written back often
        return connection

    @contextmanager
    def running(self) -> Iterator[Stores]:
        """Stores on this disk."""
        with Stores(self._before) as stores:
            yield stores
        self.disk.unregister()

    def fail(self) -> None:
        """Power fails."""
        self.failed = True
        self.disk.fail_power(self.after.folder, survivors(self.randomness))

    def fail_within(self, most: int) -> None:
        """Have power fail at one of the next writes or syncs."""
        last = self.disk.operations + self.randomness.randrange(1, most)

        def before(kind: str, path: str) -> None:
            if not self.failed and self.disk.operations >= last:
                self.fail()
            if self.failed:
                raise apsw.exception_for(apsw.SQLITE_IOERR)

        self.disk.before = before


def power_failure(folder: Path, seed: int, instead: dict[str, str]) -> tuple[int, int, bool]:
    """Commit under load until power fails at some write or sync.

    :return: the last commit that was acknowledged, how many were found, and whether the epoch is
        the one that it was
    """
    powered, acknowledged = Powered(folder, seed, instead), [0]
    with powered.running() as stores:
        store, state = stores.open(connect=powered.connect)
        powered.fail_within(300)
        number = 0
        while not powered.failed:
            wave: list[Deferred[None]] = []
            for _ in range(powered.randomness.choice((1, 4, 30))):
                number += 1
                wave.append(store.commit(commit_of(number)))
                wave[-1].addCallback(partial(lambda number, _: acknowledged.append(number), number))
            for done in wave:
                try:
                    stores.pump.result(done)
                except StoreFailed:
                    assert powered.failed
    epoch, last = powered.after.commits()
    return acknowledged[-1], last, epoch == state.epoch


def test_full(tmp_path: Path) -> None:
    """All that was acknowledged is found, in whole commits, and the epoch stays (I8, I9)."""
    acknowledged = 0
    for seed in range(FAILURES):
        said, found, same = power_failure(tmp_path / str(seed), seed, {})
        assert found >= said, seed
        assert same, seed
        acknowledged += said
    assert acknowledged > 10 * FAILURES


def test_while_pruning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was said to be dropped is gone, the oldest first; nothing else is, nor the epoch."""
    monkeypatch.setattr(sqlite, "SLICE", 5)
    cut = []
    for seed in range(FAILURES):
        powered = Powered(tmp_path / str(seed), seed)
        with powered.running() as stores:
            store, _ = stores.open(connect=powered.connect)
            for number in range(1, PRUNED + 1):
                store.commit(commit_of(number))
            before = stores.pump.result(store.load())
            powered.fail_within(60)
            try:
                said = stores.pump.result(store.prune(PRUNED))
            except StoreFailed:
                said = 0
            if not powered.failed:  # it was done sooner
                powered.fail()
        with powered.after as stores:
            store, after = stores.open()
            told = stores.pump.result(store.disclosures(TOLD, EVER, PRUNED))
        assert (after.epoch, held_of(after)) == (before.epoch, held_of(before)), seed
        gone = PRUNED - len(told)
        assert [one.at for one in reversed(told)] == list(range(gone + 1, PRUNED + 1)), seed
        assert gone >= said, seed
        cut.append(gone)
    assert any(0 < gone < PRUNED - 1 for gone in cut)


def test_normal(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("syncs", [1, 2])
def test_refused_but_written(tmp_path: Path, syncs: int) -> None:
    """A commit that was written and not synced is refused, and doesn't come back silently.

    Where a later transaction could be written it is gone; where none could, the epoch changes
    (I5, I9).
    """
    powered, failing = Powered(tmp_path), syncs
    with powered.running() as stores:
        store, state = stores.open(connect=powered.connect)
        stores.commit(store, Ia="Ib")

        def fail(kind: str, path: str) -> None:
            nonlocal failing
            if kind == "sync" and failing:
                failing -= 1
                raise apsw.exception_for(apsw.SQLITE_IOERR)

        powered.disk.before = fail
        with pytest.raises(StoreFailed, match="at present"):
            stores.pump.result(store.commit(changes_of(Ia="Ic", Ib="Ic")))
        powered.disk.fail_power(powered.after.folder, lambda: True)
    epoch, lists = powered.after.look()
    if syncs == 1:
        assert (epoch, lists) == (state.epoch, {"Ia": "Ib"})
    else:
        assert epoch != state.epoch
