"""What is answered once it is on the disk: registrations, and calls with their ledger."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Final

from benchmarks.meter import Meter
from benchmarks.processes import Site, start_mediator
from benchmarks.scratch import IN_MEMORY, file_system, sync_time

STORE: Final = "sqlite:broker.db"
GOAL: Final = 1.9
MUST: Final = 3.0
#: When a disclosure is committed: behind the address that it is of, or before it.
LEDGERS: Final = ("behind", "first")


def run(meter: Meter) -> None:
    """Measure them."""
    here = where(meter.scratch)
    took = sync_time(meter.scratch) * 1e3
    note = f"in {meter.scratch}; to append a page there and sync it takes {took:.2f} ms"
    _registrations(meter, here, note)
    _ledgers(meter, here, note)


def where(folder: Path) -> str:
    """What a row says of the folder that its database is in."""
    system = file_system(folder)
    return f"on {system}{', WHERE A SYNC COSTS NOTHING' if system in IN_MEMORY else ''}"


def _registrations(meter: Meter, here: str, note: str) -> None:
    extent = meter.extent
    site = start_mediator(status=True, store=STORE, scratch=meter.scratch)
    try:
        for repeat in range(extent.repeats):
            meter.tell(f"durable registrations, {repeat + 1} of {extent.repeats}")
            for waiting in extent.waiting:
                title = f"durable registration, {waiting} waiting, {here}"
                row = meter.row(title, goal=GOAL, must=MUST, note=note)
                meter.ratio(row, meter.load("register", site, waiting))
        site.check()
    finally:
        site.stop()


def _ledgers(meter: Meter, here: str, note: str) -> None:
    extent = meter.extent
    callers = extent.callers[0]
    with ExitStack() as stack:
        sites: dict[str, Site] = {}
        for ledger in LEDGERS:
            sites[ledger] = start_mediator(
                status=True, store=STORE, scratch=meter.scratch, options=["--ledger", ledger]
            )
            stack.callback(sites[ledger].stop)
        for repeat in range(extent.repeats):
            meter.tell(f"the ledger, {repeat + 1} of {extent.repeats}")
            slowest = inf
            for depth in extent.depths:
                for ledger in LEDGERS:
                    title = f"call with status, ledger {ledger}, {here}, {callers} × {depth}"
                    load = meter.load("call", sites[ledger], callers, depth)
                    result = meter.ratio(meter.row(title, note=note), load)
                    slowest = min(slowest, result.calls / result.seconds)
            for ledger in LEDGERS:
                title = f"p99 of a call with status, ledger {ledger}, {here}, at the same rate"
                row = meter.row(title, "ms", note="random arrivals, half the least rate of both")
                load = meter.load("call", sites[ledger], callers)
                result = meter.measure(replace(load, rate=slowest / 2, arrivals="random"))
                row.results.append(result)
                row.values.append(result.p99 * 1e3)
        for site in sites.values():
            site.check()
