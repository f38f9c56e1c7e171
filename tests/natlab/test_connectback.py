"""Connect-back and opened ports across real routers: command lines, as a person would use them."""

from __future__ import annotations

import re
import signal
from typing import Any

import pytest

from tests.natlab.conftest import Build
from tests.natlab.lab import NOT, SYMMETRIC, Lab, Router
from tests.natlab.parts import ASKED, CLOSED, QUIET, Net, count, until
from tests.support.processes import BROKER, Running

#: Slow: each builds routers of namespaces, and many wait for what a router forgets.
pytestmark = [pytest.mark.integration, pytest.mark.slow]

#: Lets a router drop what begins with PCP's version, as if it did not know of it.
NO_PCP = "insert rule inet filter input udp dport 5351 @th,64,8 2 drop"


class Back(Net):
    """The same, where Ib is reached by its call password."""

    def __init__(self, lab: Lab, **options: Any) -> None:
        super().__init__(lab, **options)
        for name, password in (("Ib.call", "open sesame"), ("guess", "open barley")):
            (lab.folder / name).write_text(f"{password}\n")
            (lab.folder / name).chmod(0o600)

    def callee(self, place: str, *arguments: str) -> Running:
        """Start Ib; wait until it is registered."""
        return self.terminal(
            place, "Ib", "--policy=password", "--call-password-file=Ib.call", *arguments
        )

    def ask(self, place: str, *arguments: str) -> Running:
        """Ia asks Ib to come for a file."""
        sent = self.lab.folder / "sent"
        sent.write_bytes(b"for Ib")
        return self.lab.start(
            place,
            *(*BROKER, "call", "--as=Ia", "Ib", f"--send={sent}", "--connect-back"),
            "--call-password-file=Ib.call",
            *self.to_mediator(),
            *arguments,
        )

    def call_back(self, place: str, *arguments: str) -> None:
        """The same; it arrives."""
        before = self.received("Ib")
        done = self.ask(place, *arguments)
        assert done.wait() == 0, done.said
        (fresh,) = self.received("Ib") - before
        assert fresh.read_bytes() == b"for Ib"
        fresh.unlink()

    def waits_at(self) -> tuple[str, int]:
        """Where the last caller was said to wait."""
        (line,) = [line for line in self.mediator.out if "> REQUEST / Caller ID:Ia" in line][-1:]
        found = re.search(r"Address:(\S+) / Port:(\d+)", line)
        assert found is not None
        return found[1], int(found[2])


def closed(lab: Lab, router: str) -> bool:
    """Whether a router has opened no port."""
    return "dnat" not in lab.openings(router)


class OpenedTests:
    """A caller behind a router that opens ports (D9, D10)."""

    @pytest.mark.parametrize(
        ("router", "without_pcp", "how"),
        [
            (Router("A", upnp=True), False, "UPnP"),
            (Router("A", natpmp=True), False, "PCP"),
            (Router("A", natpmp=True), True, "NAT-PMP"),
        ],
        ids=["upnp", "pcp", "natpmp"],
    )
    def test_by_each_way(self, build: Build, router: Router, without_pcp: bool, how: str) -> None:
        """The callee comes through it, and after the call the router has it closed again."""
        with build(router, Router("B")) as lab:
            if without_pcp:
                lab.run("routerA", "nft", NO_PCP)
            net = Back(lab)
            net.callee("hostB1")
            net.call_back("hostA1", "--open-port")
            assert net.waits_at()[0] == lab.address("routerA")
            assert closed(lab, "A")

    def test_both_symmetric(self, build: Build) -> None:
        """Behind routers by which neither could be reached otherwise (D8)."""
        routers = Router("A", translation=SYMMETRIC, upnp=True), Router("B", translation=SYMMETRIC)
        with build(*routers) as lab:
            net = Back(lab)
            net.callee("hostB1")
            net.call_back("hostA1", "--open-port")
            assert closed(lab, "A")

    def test_quiet_callee(self, build: Build) -> None:
        """A callee that lives on keepalives is woken along its mapping, and comes (D1–D8)."""
        with build(Router("A", natpmp=True), Router("B", translation=SYMMETRIC)) as lab:
            net = Back(lab, resolver_apart=True)
            callee = net.callee("hostB1", *QUIET)
            callee.wait_for(CLOSED)
            net.call_back("hostA1", "--open-port")
            assert count(callee, ASKED) > 0
            assert closed(lab, "A")

    def test_interrupted(self, build: Build) -> None:
        """A call that is given up leaves nothing open (D9)."""
        with build(Router("A", upnp=True)) as lab:
            net = Back(lab)
            net.callee("outside")
            asking = net.ask("hostA1", "--open-port", "--call-password-file=guess")
            net.mediator.wait_for("> REQUEST / Caller ID:Ia")
            assert not closed(lab, "A")
            assert asking.end(signal.SIGINT) == 130
            assert closed(lab, "A")


class NotOpenedTests:
    """What can't be verified is not used: the cause is told, and nothing stays open (D9)."""

    def told(self, net: Back, place: str, *arguments: str) -> str:
        """Why no call came about; nobody was asked."""
        done = net.ask(place, "--open-port", *arguments)
        assert done.wait() == 1
        assert not any("REQUEST / " in line for line in net.mediator.out)
        (line,) = done.err
        told = line.removeprefix("broker: no port could be opened for the callee: ")
        assert told != line
        return told

    def test_behind_two_routers(self, build: Build) -> None:
        """The inner one knows that it is behind another, and refuses."""
        with build(Router("A", upnp=True), Router("C", behind="A", upnp=True)) as lab:
            told = self.told(Back(lab), "hostC1")
            assert told.endswith("it is not connected, or behind another router")
            assert closed(lab, "C")

    def test_behind_two_routers_unknown_to_it(self, build: Build) -> None:
        """It doesn't know, and opens: what it says of itself is not what the mediator sees."""
        claims = "11.0.113.99"
        with build(Router("A"), Router("C", behind="A", natpmp=True, claims=claims)) as lab:
            assert self.told(Back(lab), "hostC1") == (
                "the router says its outside address is 11.0.113.99, the mediator sees 11.0.113.1:"
                " another router is in between"
            )
            assert closed(lab, "C")

    def test_nothing_comes_through(self, build: Build) -> None:
        """It says that it has opened the port, and has not: the mediator has tried."""
        with build(Router("A", natpmp=True)) as lab:
            dropped = "insert rule inet filter forward iifname wan tcp dport 4000 drop"
            lab.run("routerA", "nft", dropped)
            assert self.told(Back(lab), "hostA1", "--listen=tcp:4000") == (
                "the router has opened its port 4000 by PCP; the mediator has tried it:"
                " nothing answers at 11.0.113.1 port 4000 from here"
            )
            assert closed(lab, "A")

    def test_it_refuses(self, build: Build) -> None:
        """It opens no port below 1024."""
        with build(Router("A", upnp=True)) as lab:
            told = self.told(Back(lab), "hostA1", "--listen=tcp:900")
            assert told.endswith("UPnP: the router 192.168.1.1 refuses: Action not authorized")
            assert closed(lab, "A")

    def test_it_opens_none(self, build: Build) -> None:
        """It is asked in every way, and knows none."""
        with build(Router("A")) as lab:
            assert self.told(Back(lab), "hostA1") == (
                "PCP and NAT-PMP: the router 192.168.1.1 does not offer it; UPnP: no router answers"
            )


class WithoutTests:
    """Where no port need be opened by the call (D9, D10)."""

    def test_static(self, build: Build) -> None:
        """The caller's router has an entry that its owner has made."""
        with build(Router("A"), Router("B")) as lab:
            lab.open_port("A", "tcp", 4000, "hostA1")
            net = Back(lab)
            net.callee("hostB1")
            net.call_back("hostA1", "--listen=tcp:4000", "--outside=11.0.113.1:4000")
            assert net.waits_at() == ("11.0.113.1", 4000)

    def test_address_only(self, build: Build) -> None:
        """The caller's router has an address for it alone, and changes no ports."""
        with build(Router("A"), Router("B")) as lab:
            passed_on = "add rule inet filter prerouting iifname wan dnat ip to 192.168.1.2"
            lab.run("routerA", "nft", passed_on)
            net = Back(lab)
            net.callee("hostB1")
            net.call_back("hostA1", "--listen=tcp:4000", "--outside=11.0.113.1:4000")
            assert net.waits_at() == ("11.0.113.1", 4000)

    @pytest.mark.parametrize("option", [(), ("--open-port",)], ids=["", "open-port"])
    def test_public_caller(self, build: Build, option: tuple[str, ...]) -> None:
        """A caller that is on the Internet itself is come to there; it has no router to ask."""
        with build(Router("B", translation=SYMMETRIC)) as lab:
            net = Back(lab)
            net.callee("hostB1")
            net.call_back("outside", *option)
            assert net.waits_at()[0] == lab.address("outside")

    def test_public_callee(self, build: Build) -> None:
        """The callee is."""
        with build(Router("A", upnp=True)) as lab:
            net = Back(lab)
            net.callee("outside")
            net.call_back("hostA1", "--open-port")
            assert closed(lab, "A")

    @pytest.mark.parametrize("option", [(), ("--open-port",)], ids=["", "open-port"])
    def test_closed_network(self, build: Build, option: tuple[str, ...]) -> None:
        """There are private addresses alone, and routers that only route."""
        routers = [Router(name, translation=NOT) for name in "MAB"]
        with build(*routers) as lab:
            lab.only_route()
            net = Back(lab, at="hostM1")
            net.callee("hostB1")
            net.call_back("hostA1", *option)
            assert net.waits_at()[0] == "192.168.2.2"

    @pytest.mark.parametrize("option", [(), ("--open-port",)], ids=["", "open-port"])
    def test_one_network(self, build: Build, option: tuple[str, ...]) -> None:
        """All are in one network, which has no router at all."""
        with build(Router("A", hosts=3)) as lab:
            for place in ("hostA1", "hostA2", "hostA3"):
                lab.run(place, "ip", "route", "del", "default")
            net = Back(lab, at="hostA1")
            net.callee("hostA2")
            net.call_back("hostA3", *option)
            assert net.waits_at()[0] == "192.168.1.4"

    def test_in_vain(self, build: Build) -> None:
        """A callee that can't connect says so, and the caller hears it at once (C12)."""
        with build(Router("B")) as lab:
            net = Back(lab)
            net.callee("hostB1")
            done = net.ask("outside", f"--outside={lab.address('outside')}:4999")
            assert done.wait() == 1
            assert done.err == ["broker: Ib could not connect to us"]


class StandingTests:
    """A terminal that has its own port opened while it runs (D9, A22)."""

    def opened(self, net: Net, place: str, *arguments: str) -> Running:
        """Start it; wait until it is reached from outside."""
        terminal = net.begin(place, "Ib", "--open-port", *arguments)
        terminal.wait_for("Reached from outside at 11.0.113.1 port 1203")
        return terminal

    @pytest.mark.parametrize("udp", [(), ("--udp=auto",)], ids=["", "udp"])
    def test_called(self, build: Build, udp: tuple[str, ...]) -> None:
        """Callers dial it at its router; when it stops, the router has the port closed."""
        with build(Router("A", upnp=True)) as lab:
            net = Net(lab)
            terminal = self.opened(net, "hostA1", *udp)
            until(lambda: "Address:11.0.113.1 / Port:1203" in "".join(net.mediator.out))
            net.call()
            assert net.told() == "11.0.113.1"
            terminal.end()
            assert closed(lab, "A")

    def test_renumbered(self, build: Build) -> None:
        """The router gets another address: the terminal connects anew, and is called there."""
        with build(Router("A", natpmp=True)) as lab:
            net = Net(lab)
            terminal = self.opened(net, "hostA1", "--udp=auto")
            lab.renumber("A", "11.0.113.77")
            terminal.wait_for("Reached from outside at 11.0.113.77 port 1203")
            until(lambda: "Address:11.0.113.77 / Port:1203" in "".join(net.mediator.out))
            net.call()
            assert net.told() == "11.0.113.77"

    def test_not_to_be_had(self, build: Build) -> None:
        """It says why, once, and goes on as without."""
        with build(Router("A")) as lab:
            net = Net(lab)
            terminal = net.terminal("hostA1", "Ib", "--open-port")
            terminal.wait_for(
                "Port 1203 can't be reached from outside: PCP and NAT-PMP: the router"
            )
            lab.open_port("A", "tcp", 1203, "hostA1")
            net.call()
            assert count(terminal, "can't be reached from outside") == 1
