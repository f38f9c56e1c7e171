"""Calls whose caller and callee are both connected over TLS 1.3, with an ECDSA key on P-256."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from benchmarks.credentials import Certificates
from benchmarks.meter import Meter
from benchmarks.processes import start_mediator

#: Title, goal and must of each kind of site, at the least number of callers one in flight.
SITES: Final = {
    "plain": ("call over TLS", None, None),
    "status": ("call with status over TLS", 8.0, 9.0),
}


def run(meter: Meter) -> None:
    """Measure them."""
    extent = meter.extent
    callers = extent.callers[0]
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        certificates = Certificates(Path(folder))
        sites = {}
        for name in SITES:
            sites[name] = start_mediator(status=name == "status", secured=certificates.options())
            stack.callback(sites[name].stop)
        for repeat in range(extent.repeats):
            meter.tell(f"TLS, {repeat + 1} of {extent.repeats}")
            for depth in extent.depths:
                first = depth == extent.depths[0]
                for name, (title, goal, must) in SITES.items():
                    row = meter.row(
                        f"{title}, {callers} × {depth}",
                        goal=goal if first else None,
                        must=must if first else None,
                    )
                    load = meter.load("call", sites[name], callers, depth, tls=certificates.ca)
                    meter.ratio(row, load)
        for site in sites.values():
            site.check()
