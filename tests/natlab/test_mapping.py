"""Ports opened by real routers: miniupnpd, which speaks UPnP, PCP and NAT-PMP."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.natlab.conftest import Build
from tests.natlab.lab import PYTHON, Lab, Router
from tests.support.processes import Running

#: Slow: each builds routers of namespaces, and many wait for what a router forgets.
pytestmark = [pytest.mark.integration, pytest.mark.slow]

PORT = 7000
OPENER = (PYTHON[0], "-m", "tests.natlab.opener", "TCP", str(PORT))
#: Connects to a host and port, and says what it is told.
CONNECT = """\
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 1) as s:
    print(s.makefile().readline(), end="")
"""
#: Lets a router drop what begins with PCP's version, as if it did not know of it.
NO_PCP = "insert rule inet filter input udp dport 5351 @th,64,8 2 drop"


def told(opener: Running) -> dict[str, Any]:
    """What has become of the mapping."""
    what: dict[str, Any] = json.loads(opener.wait_for('"lifetime"|"failed"').string)
    return what


def stop(opener: Running) -> None:
    """Have it stop."""
    assert opener.process.stdin is not None
    opener.process.stdin.close()
    opener.wait_for("stopped")
    assert opener.wait() == 0
    assert opener.err == []


def connect(lab: Lab, address: str, port: int = PORT) -> str:
    """What somebody outside is told at a port, if there is a way to it."""
    return lab.run("outside", *PYTHON, CONNECT, address, str(port), check=False).stdout


class MappingTests:
    """A host behind a router has a port opened, and somebody outside comes through."""

    @pytest.mark.parametrize(
        ("router", "without_pcp", "how"),
        [
            (Router("A", upnp=True), False, "UPnP"),
            (Router("A", natpmp=True), False, "PCP"),
            (Router("A", natpmp=True), True, "NAT-PMP"),
            (Router("A", upnp=True, natpmp=True), False, "PCP"),
        ],
        ids=["upnp", "pcp", "natpmp", "all"],
    )
    def test_through(self, build: Build, router: Router, without_pcp: bool, how: str) -> None:
        """By each way; when the program ends, the opening goes."""
        with build(router) as lab:
            if without_pcp:
                lab.run("routerA", "nft", NO_PCP)
            assert connect(lab, lab.address("routerA")) == ""
            opener = lab.start("hostA1", *OPENER)
            mapped = told(opener)
            assert mapped["how"] == how
            assert mapped["address"] == lab.address("routerA")
            assert mapped["public"]
            assert mapped["lifetime"] == 3600
            assert connect(lab, mapped["address"], mapped["port"]) == "hello from behind\n"
            assert str(PORT) in lab.openings("A")
            stop(opener)
            assert "dnat" not in lab.openings("A")
            assert connect(lab, mapped["address"], mapped["port"]) == ""

    def test_both_at_once(self, build: Build) -> None:
        """What came second is taken back, and the opening stays: to this router both are one."""
        with build(Router("A", upnp=True, natpmp=True)) as lab:
            # PCP is heard only once UPnP has found the router.
            lab.run("routerA", "nft", "add rule inet filter fault udp dport 5351 drop")
            opener = lab.start("hostA1", *OPENER)
            assert told(opener)["how"] == "UPnP"
            lab.heal("A")
            time.sleep(4)
            assert connect(lab, lab.address("routerA")) == "hello from behind\n"
            stop(opener)
            assert "dnat" not in lab.openings("A")

    def test_neither(self, build: Build) -> None:
        """A router that opens nothing: the cause is told."""
        with build(Router("A")) as lab:
            opener = lab.start("hostA1", *OPENER)
            outcome = told(opener)
            assert outcome["failed"] == (
                "PCP and NAT-PMP: the router 192.168.1.1 does not offer it; UPnP: no router answers"
            )
            stop(opener)

    def test_without_miniupnpc(self, build: Build) -> None:
        """That it is missing is told."""
        with build(Router("A", upnp=True)) as lab:
            opener = lab.start("hostA1", *OPENER, "without-miniupnpc")
            assert told(opener)["failed"].endswith("UPnP: miniupnpc is not installed")
            stop(opener)

    def test_behind_two_routers(self, build: Build) -> None:
        """The inner router, having no public address, opens nothing; that is told."""
        inner = Router("C", behind="A", upnp=True)
        with build(Router("A", upnp=True), inner) as lab:
            opener = lab.start("hostC1", *OPENER)
            assert "behind another router" in told(opener)["failed"]
            stop(opener)
            assert "dnat" not in lab.openings("C")

    def test_the_routers_port_is_anothers(self, build: Build) -> None:
        """A port that another host has had opened: by UPnP another is asked for."""
        with build(Router("A", hosts=2, upnp=True)) as lab:
            other = lab.start("hostA2", *OPENER)
            assert told(other)["port"] == PORT
            opener = lab.start("hostA1", *OPENER)
            mapped = told(opener)
            assert mapped["port"] != PORT
            assert connect(lab, mapped["address"], mapped["port"]) == "hello from behind\n"
            stop(opener)
            assert lab.openings("A").count("dnat") == 1
            stop(other)
