"""Connect-back and opened ports across real routers: command lines, as a person would use them."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import pytest

from tests.natlab.conftest import Lay
from tests.natlab.lab import INTERNET, NOT, OUTSIDE, SYMMETRIC, Lab, Router
from tests.natlab.parts import ASKED, CLOSED, QUIET, Net, count, until
from tests.support.processes import Running

#: Slow: each builds routers of namespaces, and many wait for what a router forgets.
pytestmark = [pytest.mark.integration, pytest.mark.slow]


def closed(lab: Lab, router: str) -> bool:
    """Whether a router has opened no port."""
    return "dnat" not in lab.openings(router)


def rule(text: str) -> Callable[[Lab], object]:
    """What gives A's router a rule."""
    return lambda lab: lab.run("routerA", "nft", text)


#: It drops what begins with PCP's version, as if it did not know of it.
drop_pcp: Final = rule("insert rule inet filter input udp dport 5351 @th,64,8 2 drop")
#: It keeps its address for one host alone, and changes no ports.
pass_all_on: Final = rule("add rule inet filter prerouting iifname wan dnat ip to 192.168.1.2")
#: It opens its port 4000, and lets nothing through.
drop_4000: Final = rule("insert rule inet filter forward iifname wan tcp dport 4000 drop")


def open_4000(lab: Lab) -> None:
    """An entry that the owner of A's router has made."""
    lab.open_port("A", "tcp", 4000, "hostA1")


def without_routes(lab: Lab) -> None:
    """All are in one network, which has no router at all."""
    for place in ("hostA1", "hostA2", "hostA3"):
        lab.run(place, "ip", "route", "del", "default")


class Back(NamedTuple):
    """A callee that comes to a caller.

    :ivar at: the address at which the caller waits
    :ivar quiet: whether the callee lives on keepalives: it is woken along its mapping (D1–D8)
    :ivar net: what is special of the mediator, and of the routers
    """

    routers: Sequence[Router]
    caller: str
    callee: str
    at: str
    options: tuple[str, ...] = ()
    quiet: bool = False
    net: Mapping[str, Any] = {}


A: Final = f"{INTERNET}.1"
OPEN: Final = ("--open-port",)
AT_4000: Final = ("--listen=tcp:4000", f"--outside={A}:4000")
UPNP, PCP, CONE_A = Router("A", upnp=True), Router("A", natpmp=True), Router("A")
CONE_B, SYMMETRIC_B = Router("B"), Router("B", SYMMETRIC)
CLOSED_NET: Final = [Router(name, NOT) for name in "MAB"]
ROUTED: Final = {"prepare": Lab.only_route, "at": "hostM1"}
ONE: Final = {"prepare": without_routes, "at": "hostA1"}
BACK: Final = {
    # The caller's router opens a port (D9), and after the call has it closed again.
    "UPnP": Back([UPNP, CONE_B], "hostA1", "hostB1", A, OPEN),
    "PCP": Back([PCP, CONE_B], "hostA1", "hostB1", A, OPEN),
    "NAT-PMP": Back([PCP, CONE_B], "hostA1", "hostB1", A, OPEN, False, {"prepare": drop_pcp}),
    # Neither could be reached otherwise (D8).
    "symmetric": Back(
        [Router("A", SYMMETRIC, upnp=True), SYMMETRIC_B], "hostA1", "hostB1", A, OPEN
    ),
    "quiet callee": Back(
        [PCP, SYMMETRIC_B], "hostA1", "hostB1", A, OPEN, True, {"resolver_apart": True}
    ),
    "public callee": Back([UPNP], "hostA1", "outside", A, OPEN),
    # No port need be opened by the call (D9, D10): there is an entry of the owner's, or an address
    # for the caller alone; or it is on the Internet itself, and has no router to ask.
    "entry": Back([CONE_A, CONE_B], "hostA1", "hostB1", A, AT_4000, False, {"prepare": open_4000}),
    "address": Back(
        [CONE_A, CONE_B], "hostA1", "hostB1", A, AT_4000, False, {"prepare": pass_all_on}
    ),
    "public caller": Back([SYMMETRIC_B], "outside", "hostB1", OUTSIDE),
    "public caller, asked": Back([SYMMETRIC_B], "outside", "hostB1", OUTSIDE, OPEN),
    # There are private addresses alone: behind routers that only route, or without any.
    "routed": Back(CLOSED_NET, "hostA1", "hostB1", "192.168.2.2", (), False, ROUTED),
    "routed, asked": Back(CLOSED_NET, "hostA1", "hostB1", "192.168.2.2", OPEN, False, ROUTED),
    "one network": Back([Router("A", hosts=3)], "hostA3", "hostA2", "192.168.1.4", (), False, ONE),
    "one network, asked": Back(
        [Router("A", hosts=3)], "hostA3", "hostA2", "192.168.1.4", OPEN, False, ONE
    ),
}


@pytest.mark.parametrize("row", BACK.values(), ids=BACK)
def test_when_the_caller_can_be_reached_then_the_callee_comes(lay: Lay, row: Back) -> None:
    """It is told where, and nothing stays open (D9, D10)."""
    net = lay(*row.routers, **row.net)
    callee = net.callee(row.callee, *(QUIET if row.quiet else ()))
    if row.quiet:
        callee.wait_for(CLOSED)
    net.call_back(row.caller, *row.options)
    assert net.waits_at() == (row.at, 4000 if row.options == AT_4000 else net.waits_at()[1])
    assert not row.quiet or count(callee, ASKED) > 0
    assert all(closed(net.lab, router.name) for router in row.routers)


class GivenUpTests:
    """Calls that do not come about."""

    def test_interrupted(self, lay: Lay) -> None:
        """A call that is given up leaves nothing open (D9)."""
        net = lay(Router("A", upnp=True))
        net.callee("outside")
        asking = net.ask("hostA1", "--open-port", "--call-password-file=guess")
        net.mediator.wait_for("> REQUEST / Caller ID:Ia")
        assert not closed(net.lab, "A")
        assert asking.end(signal.SIGINT) == 130
        assert closed(net.lab, "A")

    def test_in_vain(self, lay: Lay) -> None:
        """A callee that can't connect says so, and the caller hears it at once (C12)."""
        net = lay(Router("B"))
        net.callee("hostB1")
        done = net.ask("outside", f"--outside={net.lab.address('outside')}:4999")
        assert done.wait() == 1
        assert done.err == ["broker: Ib could not connect to us"]


class NotOpened(NamedTuple):
    """A port that is not opened.

    :ivar told: why, for the caller
    :ivar prepare: what is special of the routers
    """

    routers: Sequence[Router]
    caller: str
    told: str
    options: tuple[str, ...] = ()
    prepare: Callable[[Lab], object] = bool


NOT_OPENED: Final = {
    "the inner one knows that it is behind another": NotOpened(
        [UPNP, Router("C", behind="A", upnp=True)],
        *("hostC1", "it is not connected, or behind another router"),
    ),
    # What it says of itself is not what the mediator sees.
    "the inner one does not know, and opens": NotOpened(
        [CONE_A, Router("C", behind="A", natpmp=True, claims="11.0.113.99")],
        "hostC1",
        "the router says its outside address is 11.0.113.99, the mediator sees 11.0.113.1:"
        " another router is in between",
    ),
    "it says that it has opened the port, and has not": NotOpened(
        [PCP],
        "hostA1",
        "the router has opened its port 4000 by PCP; the mediator has tried it:"
        " nothing answers at 11.0.113.1 port 4000 from here",
        ("--listen=tcp:4000",),
        drop_4000,
    ),
    "it opens no port below 1024": NotOpened(
        [UPNP],
        *("hostA1", "UPnP: the router 192.168.1.1 refuses: Action not authorized"),
        ("--listen=tcp:900",),
    ),
    "it knows no way to open one": NotOpened(
        [CONE_A],
        "hostA1",
        "PCP and NAT-PMP: the router 192.168.1.1 does not offer it; UPnP: no router answers",
    ),
}


@pytest.mark.parametrize("row", NOT_OPENED.values(), ids=NOT_OPENED)
def test_when_no_port_can_be_opened_then_the_caller_is_told_why(lay: Lay, row: NotOpened) -> None:
    """What can't be verified is not used: no callee is asked, and nothing stays open (D9)."""
    net = lay(*row.routers, prepare=row.prepare)
    done = net.ask(row.caller, "--open-port", *row.options)
    assert done.wait() == 1
    assert not any("REQUEST / " in line for line in net.mediator.out)
    (line,) = done.err
    assert line.startswith("broker: no port could be opened for the callee: ")
    assert line.endswith(row.told)
    if row.routers[-1].upnp or row.routers[-1].natpmp:
        assert closed(net.lab, row.routers[-1].name)


class StandingTests:
    """A terminal that has its own port opened while it runs (D9, A22)."""

    def opened(self, net: Net, place: str, *arguments: str, identifier: str = "Ib") -> Running:
        """Start it; wait until it is reached from outside."""
        terminal = net.begin(place, identifier, "--open-port", *arguments)
        terminal.wait_for("Reached from outside at 11.0.113.1 port 1203")
        return terminal

    @pytest.mark.parametrize("udp", [(), ("--udp=auto",)], ids=["", "udp"])
    def test_called(self, lay: Lay, udp: tuple[str, ...]) -> None:
        """Callers dial it at its router; when it stops, the router has the port closed."""
        net = lay(Router("A", upnp=True))
        terminal = self.opened(net, "hostA1", *udp)
        until(lambda: "Address:11.0.113.1 / Port:1203" in "".join(net.mediator.out))
        net.call()
        assert net.told() == "11.0.113.1"
        terminal.end()
        assert closed(net.lab, "A")

    def test_renumbered(self, lay: Lay) -> None:
        """The router gets another address: the terminal connects anew, and is called there."""
        net = lay(Router("A", natpmp=True))
        terminal = self.opened(net, "hostA1", "--udp=auto")
        net.lab.renumber("A", "11.0.113.77")
        terminal.wait_for("Reached from outside at 11.0.113.77 port 1203")
        until(lambda: "Address:11.0.113.77 / Port:1203" in "".join(net.mediator.out))
        net.call()
        assert net.told() == "11.0.113.77"

    def test_not_to_be_had(self, lay: Lay) -> None:
        """It says why, once, and goes on as without."""
        net = lay(Router("A"))
        terminal = net.terminal("hostA1", "Ib", "--open-port")
        terminal.wait_for("Port 1203 can't be reached from outside: PCP and NAT-PMP: the router")
        net.lab.open_port("A", "tcp", 1203, "hostA1")
        net.call()
        assert count(terminal, "can't be reached from outside") == 1

    def test_when_the_port_is_another_hosts_then_another_is_opened(self, lay: Lay) -> None:
        """By UPnP, which refuses the first one."""
        net = lay(Router("A", hosts=2, upnp=True))
        self.opened(net, "hostA2", identifier="Ic")
        terminal = net.begin("hostA1", "Ib", "--open-port")
        port = terminal.wait_for(r"Reached from outside at 11\.0\.113\.1 port (\d+)")[1]
        assert port != "1203"
        until(lambda: f"Address:{A} / Port:{port}" in "".join(net.mediator.out))
        net.call()
        terminal.end()
        assert net.lab.openings("A").count("dnat") == 1

    def test_when_it_is_opened_by_two_ways_then_the_second_is_taken_back(self, lay: Lay) -> None:
        """The opening stays: to this router both are one."""
        net = lay(Router("A", upnp=True, natpmp=True))
        # PCP is heard only once UPnP has found the router.
        net.lab.run("routerA", "nft", "add rule inet filter fault udp dport 5351 drop")
        terminal = self.opened(net, "hostA1")
        net.lab.heal("A")
        time.sleep(4)
        net.call()
        terminal.end()
        assert closed(net.lab, "A")
