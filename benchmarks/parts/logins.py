"""Logins, each on a connection of its own, and what a flood of them does to calls."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from benchmarks.counting import Load
from benchmarks.credentials import Certificates, add_accounts
from benchmarks.meter import Meter
from benchmarks.peers import names
from benchmarks.processes import Site, start_mediator

BELIEVED: Final = "login of whoever it is, in clear text"
UNASKED: Final = "login of whoever it is, over TLS 1.3"
TOKEN: Final = "login by resume token, in clear text"
PASSWORD: Final = "login by password, in clear text"
CERTIFICATE: Final = "login by certificate, over TLS 1.3"
QUIET: Final = "p99 of a call with status, no logins beside it"
FLOODED: Final = "p99 of a call with status, a flood of logins by password beside it"
FLOOD: Final = "the logins of that flood"

#: The file that accounts are put into before a mediator has it.
DATABASE: Final = "broker.db"
#: The calls beside a flood come at this share of the rate that is possible without.
SHARE: Final = 0.25
#: Seconds before the calls in which a flood begins, and after them.
AROUND: Final = 1.0


@dataclass(frozen=True)
class _Kind:
    """One way to log in."""

    title: str
    site: Site
    more: dict[str, Any]


def run(meter: Meter) -> None:
    """Measure them."""
    extent = meter.extent
    with ExitStack() as stack:
        certificates = Certificates(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        entrants = names("entrant", extent.entrants)
        certificates.clients(entrants)
        callers = extent.callers[0]
        accounts = [*entrants, *names("caller", callers), *names("callee", callers)]
        kinds = _believed(stack, certificates)
        checked = _checked(meter, stack, accounts)
        for repeat in range(extent.repeats):
            meter.tell(f"logins, {repeat + 1} of {extent.repeats}")
            for kind in (*kinds, *checked):
                load = meter.load("login", kind.site, extent.entrants, **kind.more)
                meter.ratio(meter.row(kind.title), load)
            _flood(meter, checked[-1].site)
        for kind in (*kinds, *checked):
            kind.site.check()


def _believed(stack: ExitStack, certificates: Certificates) -> Sequence[_Kind]:
    """Those that need no accounts."""
    plain = start_mediator(status=True)
    stack.callback(plain.stop)
    secured = start_mediator(status=True, secured=certificates.options())
    stack.callback(secured.stop)
    mutual = start_mediator(
        status=True,
        secured=certificates.options(clients=True),
        auth="certificate",
    )
    stack.callback(mutual.stop)
    over_tls = {"tls": certificates.ca}
    shown = {**over_tls, "proof": "certificate", "credentials": str(certificates.folder)}
    return (
        _Kind(BELIEVED, plain, {}),
        _Kind(UNASKED, secured, over_tls),
        _Kind(CERTIFICATE, mutual, shown),
    )


def _checked(meter: Meter, stack: ExitStack, accounts: Sequence[str]) -> Sequence[_Kind]:
    """Those that need accounts."""
    site = start_mediator(
        status=True,
        store=f"sqlite:{DATABASE}",
        auth="password",
        scratch=meter.scratch,
        prepare=lambda folder: add_accounts(folder / DATABASE, accounts),
    )
    stack.callback(site.stop)
    return (
        _Kind(TOKEN, site, {"proof": "token"}),
        _Kind(PASSWORD, site, {"proof": "password"}),
    )


def _flood(meter: Meter, site: Site) -> None:
    """Calls at a rate that leaves room, without logins and beside as many as there can be."""
    extent = meter.extent
    load = meter.load("call", site, extent.callers[0], proof="password")
    full = meter.measure(replace(load, seconds=load.seconds / 2))
    rate = full.calls / full.seconds * SHARE
    # The processor time of both together would be neither's.
    load = replace(load, rate=rate, arrivals="random", pids={})
    _note(meter, QUIET, load)
    flood = meter.load("login", site, extent.entrants, proof="password", sleeping=True)
    logins = replace(flood, pids={}, warmup=AROUND, seconds=load.seconds + 2 * AROUND, calls=0)
    flooding = meter.begin(logins)
    try:
        _note(meter, FLOODED, load)
    finally:
        result = meter.result(flooding, logins)
    meter.row(FLOOD, "").results.append(result)


def _note(meter: Meter, title: str, load: Load) -> None:
    result = meter.measure(load)
    row = meter.row(title, "ms")
    row.note = f"random arrivals, {SHARE:.0%} of the rate that is possible without logins"
    row.results.append(result)
    row.values.append(result.p99 * 1e3)
