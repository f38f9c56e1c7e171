"""Where the time of a call goes, by function."""

from __future__ import annotations

import json
import pstats
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

from benchmarks.counting import Broken, Load
from benchmarks.processes import GRACE, run_load, start_mediator

#: Functions that are shown.
SHOWN: Final = 60


def profile(*, status: bool, load: Load) -> None:
    """Print the functions of a mediator that take most of the time of a call, by their own time.

    The profiler makes everything slower, and what calls much slower than what does not: compare
    lines with each other, and rely on the bench for how long a call takes.

    :param load: whose port is yet to be found
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "profile"
        site = start_mediator(status=status, profile=path)
        try:
            process = run_load(json.dumps(asdict(replace(load, port=site.port))))
            out, err = process.communicate(timeout=load.seconds + GRACE)
            if process.returncode:
                raise Broken(f"the load failed: {err.strip()}")
        finally:
            site.stop()
        print(f"{json.loads(out)['calls']:,} calls under the profiler")
        pstats.Stats(str(path)).strip_dirs().sort_stats("tottime").print_stats(SHOWN)
