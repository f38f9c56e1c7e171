"""Keepalives by UDP, each with its answer."""

from __future__ import annotations

from typing import Final

from benchmarks.meter import Meter
from benchmarks.processes import free_port, start_mediator

GOAL: Final = 0.5
MUST: Final = 0.65
#: So many terminals, and the seconds from one keepalive of each to the next.
TERMINALS: Final = 100_000
INTERVAL: Final = 25
CLOSELY: Final = "UDP keepalive with answer"
SPARSE: Final = f"the same at {TERMINALS // INTERVAL:,} a second: {TERMINALS:,} terminals"
SHARE: Final = "of a processor these take"


def run(meter: Meter) -> None:
    """Measure them."""
    extent = meter.extent
    udp = free_port()
    site = start_mediator(status=True, udp=udp)
    try:
        for repeat in range(extent.repeats):
            meter.tell(f"keepalives, {repeat + 1} of {extent.repeats}")
            row = meter.row(CLOSELY, goal=GOAL, must=MUST)
            meter.ratio(row, meter.load("keepalive", site, extent.callers[0], udp=udp))
            rate = TERMINALS / INTERVAL
            load = meter.load("keepalive", site, extent.callers[0], udp=udp, rate=rate, calls=0)
            result = meter.ratio(meter.row(SPARSE), load)
            share = meter.row(SHARE, unit="%")
            share.values.append(100 * result.cpu * result.calls / result.seconds)
            share.results.append(result)
        site.check()
    finally:
        site.stop()
