"""The laboratory is what it says: without that, nothing proven in it would mean anything."""

from __future__ import annotations

import pytest

from tests.natlab.conftest import Build
from tests.natlab.lab import ASK, CONE, PYTHON, SEE, SERVER, SYMMETRIC, Lab, Router

pytestmark = pytest.mark.integration


def seen(lab: Lab, place: str, port: int = 1200) -> str:
    """What a host looks like from the server."""
    return lab.run(place, *PYTHON, ASK, SERVER, str(port), "who am I?").stdout.strip()


class LabTests:
    """Routers, hosts and faults."""

    def test_translation(self, build: Build) -> None:
        """A host behind a router is seen with the router's address, one before it with its own."""
        with build(Router("A"), Router("B", translation=SYMMETRIC)) as lab:
            lab.start("server", *PYTHON, SEE).wait_for("ready")
            assert seen(lab, "hostA1").startswith("11.0.113.1:")
            assert seen(lab, "hostB1").startswith("11.0.113.2:")
            assert seen(lab, "outside").startswith("11.0.113.20:")

    @pytest.mark.parametrize(("translation", "same"), [(CONE, True), (SYMMETRIC, False)])
    def test_kinds(self, build: Build, translation: str, same: bool) -> None:
        """A cone keeps one port for all it speaks with; a symmetric one does not."""
        program = (
            "import socket\n"
            "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
            "s.settimeout(3)\n"
            f"for host in ('{SERVER}', '11.0.113.20'):\n"
            "    s.sendto(b'x', (host, 1200))\n"
            "    print(s.recvfrom(99)[0].decode())\n"
        )
        with build(Router("A", translation=translation)) as lab:
            lab.start("server", *PYTHON, SEE).wait_for("ready")
            lab.start("outside", *PYTHON, SEE).wait_for("ready")
            ports = lab.run("hostA1", *PYTHON, program).stdout.split()
            assert (ports[0] == ports[1]) is same

    def test_nothing_comes_in(self, build: Build) -> None:
        """Nobody outside reaches a host that has not spoken, unless a port is opened to it."""
        with build(Router("A")) as lab:
            lab.start("hostA1", *PYTHON, SEE).wait_for("ready")
            asked = (*PYTHON, ASK, lab.address("routerA"), "1200", "x")
            assert lab.run("outside", *asked, check=False).returncode != 0
            lab.open_port("A", "udp", 1200, "hostA1")
            assert lab.run("outside", *asked).stdout.startswith("11.0.113.20:")

    def test_ended_before_it_tells(self, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
        """After a failure all is ended first: what was said may go where nobody reads."""

        def nobody_reads(*_: object) -> None:
            raise BrokenPipeError

        def fail() -> None:
            with lab:
                for place in ("server", "outside"):
                    lab.start(place, *PYTHON, SEE).wait_for("ready")
                monkeypatch.setattr("builtins.print", nobody_reads)
                raise ZeroDivisionError

        lab = build(Router("A", upnp=True))
        with pytest.raises(BrokenPipeError):
            fail()
        ended = [*(one.process for one in lab._running), *lab._daemons, lab._holder]
        assert len(ended) == 4
        assert all(process is not None and process.returncode is not None for process in ended)

    def test_faults(self, build: Build) -> None:
        """A router that is cut lets nothing through, and all again once it is healed."""
        with build(Router("A", hosts=2)) as lab:
            lab.start("server", *PYTHON, SEE).wait_for("ready")
            lab.cut("A")
            asked = (*PYTHON, ASK, SERVER, "1200", "x")
            assert lab.run("hostA2", *asked, check=False).returncode != 0
            lab.heal("A")
            assert seen(lab, "hostA2").startswith("11.0.113.1:")
            lab.renumber("A", "11.0.113.77")
            assert seen(lab, "hostA2").startswith("11.0.113.77:")

    def test_router_behind_a_router(self, build: Build) -> None:
        """Who is behind two routers is seen with the outer one's address."""
        with build(Router("A"), Router("C", behind="A")) as lab:
            lab.start("server", *PYTHON, SEE).wait_for("ready")
            assert seen(lab, "hostC1").startswith("11.0.113.1:")

    def test_ports_are_opened_on_request(self, build: Build) -> None:
        """A router with UPnP opens a port to the host that asks."""
        with build(Router("A", upnp=True, natpmp=True)) as lab:
            lab.start("hostA1", *PYTHON, SEE).wait_for("ready")
            asked = (
                "upnpc",
                "-m",
                "eth0",
                "-a",
                lab.address("hostA1"),
                "1200",
                "1200",
                "UDP",
                "60",
            )
            said = lab.run("hostA1", *asked, check=False)
            assert "1200" in lab.openings("A"), said.stdout + said.stderr
            program = (*PYTHON, ASK, lab.address("routerA"), "1200", "x")
            assert lab.run("outside", *program).stdout.startswith("11.0.113.20:")
