"""The parts of the bench, and one run of some of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from benchmarks.meter import Extent, Meter, Row
from benchmarks.parts import calls, durable, keepalives, logins, memory, tls
from benchmarks.processes import raise_limit
from benchmarks.scratch import scratch_folder

#: Each by its name, in the order in which they run.
PARTS: Final[dict[str, Callable[[Meter], None]]] = {
    "calls": calls.run,
    "memory": memory.run,
    "durable": durable.run,
    "tls": tls.run,
    "logins": logins.run,
    "keepalives": keepalives.run,
}


def measure(parts: Sequence[str], extent: Extent, tell: Callable[[str], None]) -> list[Row]:
    """Run some of the parts; the lines of their table.

    :raises Broken: a server or a load failed, or a reply was wrong
    """
    raise_limit()
    meter = Meter(extent, tell, scratch_folder())
    try:
        for name, run in PARTS.items():
            if name in parts:
                run(meter)
    finally:
        meter.stop()
    return list(meter.rows.values())
