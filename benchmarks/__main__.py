"""``bin/bench``: measures what the product costs, and prints every result as a ratio to REF."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.counting import Broken, Load
from benchmarks.meter import Extent, tell_on_stderr
from benchmarks.plan import PARTS, measure
from benchmarks.profiling import profile
from benchmarks.report import as_json, tables

FULL = Extent()
QUICK = Extent(callers=(50,), depths=(1,), waiting=(100,), repeats=2, seconds=1.0, terminals=2000)


def numbers(text: str) -> tuple[int, ...]:
    """``50,500``."""
    return tuple(int(part) for part in text.split(","))


def parts(text: str) -> list[str]:
    """``tls,durable``."""
    named = text.split(",")
    unknown = [name for name in named if name not in PARTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no part is called {', '.join(unknown)}")
    return named


def parser() -> argparse.ArgumentParser:
    """What may stand on the command line."""
    made = argparse.ArgumentParser(
        prog="bin/bench",
        description="Measures what the product costs: server CPU a call, a registration, a login;"
        " rates, latencies, memory of an idle terminal. REF is what a request costs on a bare"
        " Twisted protocol in the same run. See benchmarks/README.md.",
        epilog="All of it takes nine to ten minutes, with --quick two to three. The parts by"
        " themselves, in minutes: calls 5, memory 1, durable 1.5, tls 1, logins 1.5.",
    )
    made.add_argument(
        "--only",
        type=parts,
        metavar="PART,PART",
        default=list(PARTS),
        help=f"only these parts: {', '.join(PARTS)}",
    )
    made.add_argument("--quick", action="store_true", help="a short run, of rough figures")
    made.add_argument("--json", type=Path, metavar="PATH", help="write all results there as well")
    made.add_argument("--callers", type=numbers, metavar="N,N", help="numbers of callers (50,500)")
    made.add_argument(
        "--depths", type=numbers, metavar="N,N", help="requests each has in flight (1,16)"
    )
    made.add_argument(
        "--waiting", type=numbers, metavar="N,N", help="terminals that register at once (100,200)"
    )
    made.add_argument("--entrants", type=int, metavar="N", help="how many log in at once (20)")
    made.add_argument("--repeats", type=int, metavar="N", help="how often each is measured (3)")
    made.add_argument("--seconds", type=float, metavar="S", help="how long each time (1.5)")
    made.add_argument("--calls", type=int, metavar="N", help="end each time after so many calls")
    made.add_argument(
        "--terminals", type=int, metavar="N", help="idle terminals (10000; 0: leave memory out)"
    )
    made.add_argument(
        "--profile",
        action="store_true",
        help="measure nothing, but show which functions a call with the status query spends its "
        "time in",
    )
    made.add_argument(
        "--no-status", action="store_true", help="with --profile: a call without the status query"
    )
    return made


def extent_of(options: argparse.Namespace) -> Extent:
    """How much is measured."""
    base = QUICK if options.quick else FULL
    given = {name: getattr(options, name) for name in vars(base)}
    return Extent(
        **vars(base) | {name: value for name, value in given.items() if value is not None}
    )


def main() -> int:
    """Run as told; 1 if the run broke."""
    options = parser().parse_args()
    extent = extent_of(options)
    try:
        if options.profile:
            load = Load(
                "call",
                port=0,
                callers=extent.callers[0],
                depth=extent.depths[0],
                warmup=0,
                seconds=extent.seconds,
                calls=extent.calls,
            )
            profile(status=not options.no_status, load=load)
            return 0
        rows = measure(options.only, extent, tell_on_stderr)
    except Broken as error:
        print(f"bin/bench: {error}", file=sys.stderr)
        return 1
    print(tables(rows))
    if options.json is not None:
        options.json.write_text(json.dumps(as_json(rows), indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
