"""What every part of the bench measures with.

Every measure of a site stands between two of REF, because figures drift by tens of per cent from
minute to minute; its ratio is to the mean of the two.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from math import nan
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.counting import Broken, Load, Result
from benchmarks.processes import GRACE, Site, run_load, start_echo


@dataclass(frozen=True)
class Extent:
    """How much is measured.

    :ivar callers: numbers of callers
    :ivar depths: numbers of requests that each has in flight
    :ivar waiting: numbers of terminals that register at the same time
    :ivar entrants: how many log in at the same time
    :ivar repeats: how often each measure is taken
    :ivar seconds: how long each lasts
    :ivar calls: after how many calls it ends before that, or 0
    :ivar terminals: idle terminals whose memory is measured, or 0
    """

    callers: tuple[int, ...] = (50, 500)
    depths: tuple[int, ...] = (1, 16)
    waiting: tuple[int, ...] = (100, 200)
    entrants: int = 20
    repeats: int = 3
    seconds: float = 1.5
    calls: int = 0
    terminals: int = 10_000


@dataclass
class Row:
    """One line of the table.

    :ivar unit: of what is compared with the goal: ``REF`` for ratios, ``KiB`` for memory, ``echo``
        for a latency beside that of the bare echo, ``ms`` for a p99
    :ivar values: what is compared, once a repeat
    :ivar results: what they come from, where that is a load's own result
    :ivar note: what else has to be said of it
    """

    title: str
    unit: str = "REF"
    goal: float | None = None
    must: float | None = None
    values: list[float] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    note: str = ""


class Meter:
    """Measures, and keeps the table.

    :ivar extent: how much is measured
    :ivar tell: says how far it is
    :ivar scratch: a folder on a disk
    :ivar rows: the table, in the order of its lines
    """

    def __init__(self, extent: Extent, tell: Callable[[str], None], scratch: Path) -> None:
        self.extent = extent
        self.tell = tell
        self.scratch = scratch
        self.rows: dict[str, Row] = {"REF": Row("REF: the bare echo")}
        self._echo = start_echo()
        self._fresh: Result | None = None

    def stop(self) -> None:
        """End the bare echo."""
        self._echo.stop()

    # The table.

    def row(self, title: str, unit: str = "REF", **more: Any) -> Row:
        """The line of this title, which is made if there is none.

        :param more: the other fields of a new one
        """
        return self.rows.setdefault(title, Row(title, unit, **more))

    # Measures.

    def load(self, kind: str, site: Site, callers: int, depth: int = 1, **more: Any) -> Load:
        """A load as long as all are.

        :param more: its other fields
        """
        extent = self.extent
        usual = Load(
            kind=kind,
            port=site.port,
            callers=callers,
            depth=depth,
            seconds=extent.seconds,
            calls=extent.calls,
            warmup=min(0.3, extent.seconds),
            pids=site.pids,
        )
        return replace(usual, **more)

    def ratio(self, row: Row, load: Load) -> Result:
        """Measure, and note its ratio to REF before and after."""
        before = self._reference() if self._fresh is None else self._fresh
        result = self.measure(load)
        after = self._fresh = self._reference()
        row.results.append(result)
        row.values.append(quotient(result.cpu, fmean((before.cpu, after.cpu))))
        return result

    def echo(self) -> Load:
        """The load of REF."""
        return self.load("echo", self._echo, self.extent.callers[0])

    def _reference(self) -> Result:
        echo = self.echo()
        result = self.measure(replace(echo, seconds=echo.seconds / 2))
        row = self.rows["REF"]
        row.results.append(result)
        row.values.append(1.0)
        return result

    def measure(self, load: Load) -> Result:
        """Measure."""
        return self.result(self.begin(load), load)

    def begin(self, load: Load) -> subprocess.Popen[str]:
        """Let a load begin."""
        self._fresh = None
        return run_load(json.dumps(asdict(load)))

    def result(self, process: subprocess.Popen[str], load: Load) -> Result:
        """Wait for a load's result.

        :raises Broken: it failed, or a reply was wrong
        """
        out, err = process.communicate(timeout=load.warmup + load.seconds + GRACE)
        if process.returncode:
            raise Broken(f"the load failed: {err.strip()}")
        result = Result(**json.loads(out))
        if result.errors:
            raise Broken(f"{result.errors} wrong replies, of which:\n" + "\n".join(result.shown))
        if not result.calls:
            raise Broken("no call was answered")
        return result


def quotient(value: float, reference: float) -> float:
    """NaN where a reference lasted less than the system's clock can tell."""
    return value / reference if reference else nan


def tell_on_stderr(what: str) -> None:
    """Say how far it is."""
    print(what, file=sys.stderr, flush=True)
