"""What is measured, in which order, and what it comes to beside REF.

Every measure of a site stands between two of REF, because figures drift by tens of per cent from
minute to minute; its ratio is to the mean of the two.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from math import nan
from statistics import fmean
from typing import Final

import psutil

from benchmarks.load import Broken, Load, Result
from benchmarks.processes import GRACE, Site, raise_limit, run_load, start_echo, start_mediator

#: Open files that a process needs beside its connections.
FILES_SPARE: Final = 100


@dataclass(frozen=True)
class Extent:
    """How much is measured.

    :ivar callers: numbers of callers
    :ivar depths: numbers of requests that each has in flight
    :ivar repeats: how often each measure is taken
    :ivar seconds: how long each lasts
    :ivar calls: after how many calls it ends before that, or 0
    :ivar terminals: idle terminals whose memory is measured, or 0
    """

    callers: tuple[int, ...] = (50, 500)
    depths: tuple[int, ...] = (1, 16)
    repeats: int = 3
    seconds: float = 2.0
    calls: int = 0
    terminals: int = 10_000


@dataclass
class Row:
    """One line of the table.

    :ivar unit: of what is compared with the goal: ``REF`` for ratios, ``KiB`` for memory, ``echo``
        for a latency beside that of the bare echo
    :ivar values: what is compared, once a repeat
    :ivar results: what they come from, where that is a load's own result
    """

    title: str
    unit: str = "REF"
    goal: float | None = None
    must: float | None = None
    values: list[float] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)


@dataclass(frozen=True)
class _Shape:
    """A load on a site: what is repeated."""

    title: str
    site: str
    load: Load
    goal: float | None = None
    must: float | None = None


#: Title, goal and must of each kind of site, at the least number of callers one in flight.
SITES: Final = {
    "plain": ("call", 1.8, 3.0),
    "status": ("call with status", 3.5, 5.5),
    "plain apart": ("call, resolver apart", None, None),
    "status apart": ("call with status, resolver apart", None, None),
}
#: Follows the title where the address is one that only the resolver knows.
ASKED: Final = "and asked each time"
APART_GOAL: Final = 0.5
APART_MUST: Final = 0.8
P99_GOAL: Final = 1.4
P99_MUST: Final = 2.0
IDLE_GOAL: Final = 4.0
IDLE_MUST: Final = 5.0
#: Callees whom one caller calls in turn, where it calls more than one.
CALLEES: Final = 16


class Bench:
    """One run of everything.

    :ivar rows: the table, in the order of its lines
    """

    def __init__(self, extent: Extent, tell: Callable[[str], None]) -> None:
        self._extent = extent
        self._tell = tell
        self._sites: dict[str, Site] = {}
        self.rows: dict[str, Row] = {"REF": Row("REF: the bare echo")}

    def run(self) -> list[Row]:
        """Measure everything.

        :raises Broken: a server or a load failed, or a reply was wrong
        """
        extent = self._extent
        raise_limit()
        with ExitStack() as stack:
            self._sites["echo"] = start_echo()
            stack.callback(self._sites["echo"].stop)
            for name in SITES:
                site = start_mediator(status="status" in name, apart="apart" in name)
                self._sites[name] = site
                stack.callback(site.stop)
            shapes = list(self._shapes())
            for repeat in range(extent.repeats):
                self._tell(f"repeat {repeat + 1} of {extent.repeats}")
                self._repeat(shapes)
            for site in self._sites.values():
                site.check()
        self._add_differences(shapes)
        if extent.terminals:
            for repeat in range(min(extent.repeats, 3)):
                self._tell(f"memory, {repeat + 1}")
                self._measure_idle()
        return list(self.rows.values())

    def _shapes(self) -> Iterator[_Shape]:
        extent = self._extent
        for callers in extent.callers:
            for depth in extent.depths:
                for site, (title, goal, must) in SITES.items():
                    first = (callers, depth) == (extent.callers[0], extent.depths[0])
                    yield _Shape(
                        f"{title}, {callers} × {depth}",
                        site,
                        self._load("call", site, callers, depth),
                        goal if first else None,
                        must if first else None,
                    )
        for depth in extent.depths:
            for site in ("plain apart", "status apart"):
                callers = extent.callers[0]
                yield _Shape(
                    f"{SITES[site][0]} {ASKED}, {callers} × {depth}",
                    site,
                    self._load("call", site, callers, depth, resolver=self._sites[site].resolver),
                )
        most = extent.depths[-1]
        if most > 1:
            for site in ("plain", "status"):
                callers = extent.callers[0]
                load = self._load("call", site, callers, most, callees=CALLEES)
                yield _Shape(f"{SITES[site][0]}, {callers} × {most}, callees in turn", site, load)

    def _load(self, kind: str, site: str, callers: int, depth: int, **more: float) -> Load:
        extent = self._extent
        return Load(
            kind=kind,
            port=self._sites[site].port,
            callers=callers,
            depth=depth,
            seconds=extent.seconds,
            calls=extent.calls,
            warmup=min(0.3, extent.seconds),
            pids=self._sites[site].pids,
            **more,  # type: ignore[arg-type]
        )

    def _repeat(self, shapes: Sequence[_Shape]) -> None:
        callers = self._extent.callers[0]
        echo = self._load("echo", "echo", callers, 1)
        brief = replace(echo, seconds=echo.seconds / 2)
        reference = self._reference(brief)
        for shape in shapes:
            result = self._measure(shape.load)
            after = self._reference(brief)
            row = self.rows.setdefault(
                shape.title, Row(shape.title, goal=shape.goal, must=shape.must)
            )
            row.results.append(result)
            row.values.append(_ratio(result.cpu, fmean((reference.cpu, after.cpu))))
            reference = after
        for arrivals in ("even", "random"):
            self._half_loads(echo, shapes, arrivals)

    def _reference(self, echo: Load) -> Result:
        result = self._measure(echo)
        row = self.rows["REF"]
        row.results.append(result)
        row.values.append(1.0)
        return result

    def _half_loads(self, echo: Load, shapes: Sequence[_Shape], arrivals: str) -> None:
        """Latencies at half load, beside the echo's at half of its own."""
        bare = self._half_load(echo, arrivals)
        title = f"REF at half load, {arrivals} arrivals"
        self.rows.setdefault(title, Row(title, "echo")).results.append(bare)
        even = arrivals == "even"
        for shape in shapes[: len(SITES)]:
            apart = "apart" in shape.site
            if apart and not even:
                continue
            result = self._half_load(shape.load, arrivals)
            title = f"{SITES[shape.site][0]}, at half load, {arrivals} arrivals"
            row = self.rows.setdefault(title, Row(title, "echo"))
            if even and not apart:
                row.goal, row.must = P99_GOAL, P99_MUST
            row.results.append(result)
            row.values.append(_ratio(result.p99, bare.p99))

    def _half_load(self, load: Load, arrivals: str) -> Result:
        full = self._measure(replace(load, seconds=load.seconds / 2))
        return self._measure(replace(load, rate=full.calls / full.seconds / 2, arrivals=arrivals))

    def _measure(self, load: Load) -> Result:
        process = run_load(json.dumps(asdict(load)))
        out, err = process.communicate(timeout=load.warmup + load.seconds + GRACE)
        if process.returncode:
            raise Broken(f"the load failed: {err.strip()}")
        told = json.loads(out)
        result = Result(**told)
        if result.errors:
            raise Broken(f"{result.errors} wrong replies, of which:\n" + "\n".join(result.shown))
        if not result.calls:
            raise Broken("no call was answered")
        return result

    def _add_differences(self, shapes: Sequence[_Shape]) -> None:
        """What a resolver apart adds, in each repeat."""
        inside = [shape for shape in shapes if shape.site in ("plain", "status")]
        for shape in inside:
            kind = SITES[shape.site][0]
            apart = SITES[f"{shape.site} apart"][0]
            for other in (apart, f"{apart} {ASKED}"):
                row = self.rows.get(shape.title.replace(kind, other))
                if row is None:
                    continue
                without = self.rows[shape.title].values
                added = [one - two for one, two in zip(row.values, without, strict=True)]
                name = f"adds: {row.title}"
                self.rows[name] = Row(name, "REF", APART_GOAL, APART_MUST, added)

    def _measure_idle(self) -> None:
        """The memory of terminals that have registered and do nothing."""
        terminals = min(self._extent.terminals, raise_limit() - FILES_SPARE)
        site = start_mediator(status=True)
        try:
            load = run_load(json.dumps(asdict(Load("idle", site.port, callers=terminals))))
            try:
                first, before = self._idle(load, site)
                if load.stdin is not None:
                    load.stdin.write("\n")
                    load.stdin.flush()
                every, after = self._idle(load, site)
            finally:
                _, err = load.communicate(timeout=GRACE)
            if not every > first:
                raise Broken(f"the idle terminals failed: {err.strip()}")
            site.check()
        finally:
            site.stop()
        title = f"memory of an idle terminal, {terminals} of them"
        row = self.rows.setdefault(title, Row(title, "KiB", IDLE_GOAL, IDLE_MUST))
        row.values.append((after - before) / (every - first) / 1024)

    def _idle(self, load: subprocess.Popen[str], site: Site) -> tuple[int, int]:
        """How many terminals are registered, and the bytes that the mediator has to itself."""
        said = load.stdout.readline() if load.stdout is not None else ""
        memory: int = psutil.Process(site.pids["mediator"]).memory_full_info().uss
        return json.loads(said)["ready"] if said else 0, memory


def _ratio(value: float, reference: float) -> float:
    """NaN where a reference lasted less than the system's clock can tell."""
    return value / reference if reference else nan


def tell_on_stderr(what: str) -> None:
    """Say how far it is."""
    print(what, file=sys.stderr, flush=True)
