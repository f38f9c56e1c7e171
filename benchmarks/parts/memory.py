"""The memory of terminals that have registered and do nothing, in clear text and over TLS."""

from __future__ import annotations

import json
import subprocess
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Final

import psutil

from benchmarks.counting import Broken, Load
from benchmarks.credentials import Certificates
from benchmarks.meter import Meter
from benchmarks.processes import GRACE, Site, raise_limit, run_load, start_mediator

GOAL: Final = 4.0
MUST: Final = 5.0
TLS_GOAL: Final = 29.0
TLS_MUST: Final = 31.0
#: Open files that a process needs beside its connections.
FILES_SPARE: Final = 100
#: Over TLS there are fewer: a handshake takes a millisecond on both sides.
TLS_SHARE: Final = 4


def run(meter: Meter) -> None:
    """Measure both."""
    terminals = min(meter.extent.terminals, raise_limit() - FILES_SPARE)
    if not terminals:
        return
    plain = f"memory of an idle terminal, {terminals} of them"
    few = max(5, terminals // TLS_SHARE)
    secured = f"memory of an idle terminal over TLS, {few} of them"
    with tempfile.TemporaryDirectory() as folder:
        certificates = Certificates(Path(folder))
        for repeat in range(meter.extent.repeats):
            meter.tell(f"memory, {repeat + 1} of {meter.extent.repeats}")
            row = meter.row(plain, "KiB", goal=GOAL, must=MUST)
            row.values.append(_growth(terminals))
            row = meter.row(secured, "KiB", goal=TLS_GOAL, must=TLS_MUST)
            row.values.append(_growth(few, certificates))


def _growth(terminals: int, certificates: Certificates | None = None) -> float:
    """KiB that the mediator grows by with each terminal."""
    secured = () if certificates is None else certificates.options()
    site = start_mediator(status=True, secured=secured)
    try:
        idle = Load("idle", site.port, callers=terminals)
        if certificates is not None:
            idle = Load("idle", site.port, callers=terminals, tls=certificates.ca)
        load = run_load(json.dumps(asdict(idle)))
        try:
            first, before = _held(load, site)
            if load.stdin is not None:
                load.stdin.write("\n")
                load.stdin.flush()
            every, after = _held(load, site)
        finally:
            _, err = load.communicate(timeout=GRACE)
        if not every > first:
            raise Broken(f"the idle terminals failed: {err.strip()}")
        site.check()
    finally:
        site.stop()
    return (after - before) / (every - first) / 1024


def _held(load: subprocess.Popen[str], site: Site) -> tuple[int, int]:
    """How many terminals are registered, and the bytes that the mediator has to itself."""
    said = load.stdout.readline() if load.stdout is not None else ""
    memory: int = psutil.Process(site.pids["mediator"]).memory_full_info().uss
    return json.loads(said)["ready"] if said else 0, memory
