"""The laboratory is what it says: without that, nothing proven in it would mean anything."""

from __future__ import annotations

import pytest

from tests.natlab.conftest import Build
from tests.natlab.lab import ASK, OUTSIDE, PYTHON, SEE, SERVER, SYMMETRIC, Lab, Router

pytestmark = pytest.mark.integration


#: Asks two servers, from one port, what it looks like.
ASK_BOTH = f"""
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(3)
for host in ({SERVER!r}, {OUTSIDE!r}):
    s.sendto(b"x", (host, 1200))
    print(s.recvfrom(99)[0].decode())
"""


def asked(lab: Lab, place: str, address: str = SERVER) -> str:
    """Where a place is seen, by one at an address; nothing, if there is no way to it."""
    return lab.run(place, *PYTHON, ASK, address, "1200", "who am I?", check=False).stdout.strip()


class LabTests:
    """Routers, hosts and faults."""

    def test_translation(self, build: Build) -> None:
        """A host behind routers is seen with the outer one's address, one before them with its own.

        A cone keeps one port for all it speaks with; a symmetric one does not.
        """
        routers = Router("A"), Router("B", translation=SYMMETRIC), Router("C", behind="A")
        with build(*routers) as lab:
            for place in ("server", "outside"):
                lab.start(place, *PYTHON, SEE).wait_for("ready")
            for place, address, ports in (
                ("hostA1", "11.0.113.1", 1),
                ("hostB1", "11.0.113.2", 2),
                ("hostC1", "11.0.113.1", 1),
            ):
                seen = lab.run(place, *PYTHON, ASK_BOTH).stdout.split()
                assert [one.partition(":")[0] for one in seen] == [address] * 2
                assert len(set(seen)) == ports
            assert asked(lab, "outside").startswith(OUTSIDE)

    def test_ways(self, build: Build) -> None:
        """A host that has not spoken is not reached, unless a port is opened to it. A router that
        is cut lets nothing through, and all again once it is healed.
        """
        with build(Router("A", hosts=2)) as lab:
            for place in ("server", "hostA1"):
                lab.start(place, *PYTHON, SEE).wait_for("ready")
            assert asked(lab, "outside", lab.address("routerA")) == ""
            lab.open_port("A", "udp", 1200, "hostA1")
            assert asked(lab, "outside", lab.address("routerA")).startswith(OUTSIDE)
            lab.cut("A")
            assert asked(lab, "hostA2") == ""
            lab.heal("A")
            assert asked(lab, "hostA2").startswith("11.0.113.1:")
            lab.renumber("A", "11.0.113.77")
            assert asked(lab, "hostA2").startswith("11.0.113.77:")

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

    def test_ports_are_opened_on_request(self, build: Build) -> None:
        """A router with UPnP opens a port to the host that asks."""
        with build(Router("A", upnp=True, natpmp=True)) as lab:
            lab.start("hostA1", *PYTHON, SEE).wait_for("ready")
            command = f"upnpc -m eth0 -a {lab.address('hostA1')} 1200 1200 UDP 60".split()
            said = lab.run("hostA1", *command, check=False)
            assert "1200" in lab.openings("A"), said.stdout + said.stderr
            assert asked(lab, "outside", lab.address("routerA")).startswith(OUTSIDE)
