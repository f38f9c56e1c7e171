"""Calls in clear text, with the resolver inside and apart; and how long they take at half load."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Final

from benchmarks.counting import Load, Result
from benchmarks.meter import Meter, quotient
from benchmarks.processes import Site, start_mediator


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
#: Callees whom one caller calls in turn, where it calls more than one.
CALLEES: Final = 16


def run(meter: Meter) -> None:
    """Measure them."""
    with ExitStack() as stack:
        sites: dict[str, Site] = {}
        for name in SITES:
            sites[name] = start_mediator(status="status" in name, apart="apart" in name)
            stack.callback(sites[name].stop)
        part = _Part(meter, sites)
        for repeat in range(meter.extent.repeats):
            meter.tell(f"calls, {repeat + 1} of {meter.extent.repeats}")
            part.repeat()
        for site in sites.values():
            site.check()
    part.add_differences()


class _Part:
    """All shapes, on sites that run."""

    def __init__(self, meter: Meter, sites: dict[str, Site]) -> None:
        self._meter = meter
        self._sites = sites
        self._shapes: Sequence[_Shape] = list(self._all())

    def _all(self) -> Iterator[_Shape]:
        extent = self._meter.extent
        least = extent.callers[0]
        for callers in extent.callers:
            for depth in extent.depths:
                for site, (title, goal, must) in SITES.items():
                    if "apart" in site and callers != least:
                        continue
                    first = (callers, depth) == (least, extent.depths[0])
                    yield _Shape(
                        f"{title}, {callers} × {depth}",
                        site,
                        self._load(site, callers, depth),
                        goal if first else None,
                        must if first else None,
                    )
        for depth in extent.depths:
            for site in ("plain apart", "status apart"):
                yield _Shape(
                    f"{SITES[site][0]} {ASKED}, {least} × {depth}",
                    site,
                    replace(self._load(site, least, depth), resolver=self._sites[site].resolver),
                )
        most = extent.depths[-1]
        if most > 1:
            for site in ("plain", "status"):
                load = replace(self._load(site, least, most), callees=CALLEES)
                yield _Shape(f"{SITES[site][0]}, {least} × {most}, callees in turn", site, load)

    def _load(self, site: str, callers: int, depth: int) -> Load:
        return self._meter.load("call", self._sites[site], callers, depth)

    def repeat(self) -> None:
        """Each once."""
        for shape in self._shapes:
            row = self._meter.row(shape.title, goal=shape.goal, must=shape.must)
            self._meter.ratio(row, shape.load)
        for arrivals in ("even", "random"):
            self._half_loads(arrivals)

    def _half_loads(self, arrivals: str) -> None:
        """Latencies at half load, beside the echo's at half of its own."""
        meter = self._meter
        bare = self._half_load(meter.echo(), arrivals)
        meter.row(f"REF at half load, {arrivals} arrivals", "echo").results.append(bare)
        even = arrivals == "even"
        for shape in self._shapes[: len(SITES)]:
            apart = "apart" in shape.site
            if apart and not even:
                continue
            result = self._half_load(shape.load, arrivals)
            row = meter.row(f"{SITES[shape.site][0]}, at half load, {arrivals} arrivals", "echo")
            if even and not apart:
                row.goal, row.must = P99_GOAL, P99_MUST
            row.results.append(result)
            row.values.append(quotient(result.p99, bare.p99))

    def _half_load(self, load: Load, arrivals: str) -> Result:
        full = self._meter.measure(replace(load, seconds=load.seconds / 2))
        rate = full.calls / full.seconds / 2
        return self._meter.measure(replace(load, rate=rate, arrivals=arrivals))

    def add_differences(self) -> None:
        """What a resolver apart adds, in each repeat."""
        rows = self._meter.rows
        for shape in self._shapes:
            if shape.site not in {"plain", "status"}:
                continue
            kind = SITES[shape.site][0]
            apart = SITES[f"{shape.site} apart"][0]
            for other in (apart, f"{apart} {ASKED}"):
                row = rows.get(shape.title.replace(kind, other))
                if row is None:
                    continue
                without = rows[shape.title].values
                added = [one - two for one, two in zip(row.values, without, strict=True)]
                name = f"adds: {row.title}"
                self._meter.row(name, goal=APART_GOAL, must=APART_MUST, values=added)
