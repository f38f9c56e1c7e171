"""Applications with a terminal in them, behind real routers: what ``terminal.call`` tells them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from broker.terminal.outgoing.connector import SLOWER
from tests.natlab.conftest import Build
from tests.natlab.lab import INTERNET, SERVER, SYMMETRIC, Lab, Router
from tests.support.processes import TWISTD, Running

#: Slow: each builds routers of namespaces, and many wait for what a router forgets.
pytestmark = [pytest.mark.integration, pytest.mark.slow]

APPLICATION: Final = (sys.executable, str(Path(__file__).with_name("application.py")))
A: Final = f"{INTERNET}.1"
B: Final = f"{INTERNET}.2"
OUTSIDE: Final = f"{INTERNET}.20"


def mediator(lab: Lab) -> Running:
    """A mediator that believes everybody, on the laboratory's Internet."""
    running = lab.start(
        "server",
        *(*TWISTD, "-n", "broker", "--auth=none", "--store=memory:", "--allow-clear-text"),
        f"--listen=tcp:1201:interface={SERVER}",
        f"--udp=1200:{SERVER}",
        "--udp-interval=1",
    )
    running.wait_for("Listening for datagrams")
    return running


def application(lab: Lab, place: str, identifier: str, *more: str) -> Running:
    """An application at a place, which permits the other one."""
    other = "Ib" if identifier == "Ia" else "Ia"
    running = lab.start(place, *APPLICATION, identifier, SERVER, other, *more)
    running.wait_for(f'"ready": "{identifier}"')
    return running


def ask(application: Running, callee: str) -> dict[str, Any]:
    """Have it call somebody; what it says of that."""
    application.type(f"{callee}\n")
    said: dict[str, Any] = json.loads(application.wait_for(r"^\{").string)
    return said


class ApplicationTests:
    """One call for an application; whichever way it goes, it is told which (D8)."""

    def test_both_ways(self, build: Build) -> None:
        """Either calls the other, through both routers; each call finds its way by itself."""
        with build(Router("A"), Router("B")) as lab:
            mediator(lab)
            ia = application(lab, "hostA1", "Ia")
            ib = application(lab, "hostB1", "Ib")
            for caller, callee, host in ((ia, "Ib", B), (ib, "Ia", A), (ia, "Ib", B)):
                said = ask(caller, callee)
                assert said.get("right"), said
                assert (said["way"], said["host"]) == ("simultaneous", host)
                assert said["tried"] == {"direct": SLOWER}

    def test_come_to(self, build: Build) -> None:
        """A caller without a router is come to at the listener that it has anyway."""
        with build(Router("B", SYMMETRIC)) as lab:
            mediator(lab)
            application(lab, "hostB1", "Ib")
            said = ask(application(lab, "outside", "Ia"), "Ib")
            assert said == {
                "callee": "Ib",
                "right": True,
                "way": "back",
                "host": OUTSIDE,
                "port": 1203,
                "tried": {"direct": SLOWER, "simultaneous": SLOWER},
            }

    def test_port_opened(self, build: Build) -> None:
        """With an opener the router opens the listener's port for the call, and closes it (D9)."""
        with build(Router("A", SYMMETRIC, natpmp=True), Router("B", SYMMETRIC)) as lab:
            mediator(lab)
            application(lab, "hostB1", "Ib")
            ia = application(lab, "hostA1", "Ia", "open")
            for _ in range(2):
                said = ask(ia, "Ib")
                assert (said["right"], said["way"], said["host"]) == (True, "back", A)
            ia.end()
            assert "dnat" not in lab.openings("A")

    def test_no_way(self, build: Build) -> None:
        """Where none leads there, each is named with its reason, and the next call is made anew."""
        with build(Router("A", SYMMETRIC), Router("B", SYMMETRIC)) as lab:
            mediator(lab)
            application(lab, "hostB1", "Ib")
            said = ask(application(lab, "hostA1", "Ia"), "Ib")
            late = "no answer in 10 seconds"
            assert said["tried"] == {"direct": late, "simultaneous": late}
            assert said["why"].startswith(f"Ib could not be reached: directly at {B}:1203: {late};")
