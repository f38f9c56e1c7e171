"""Calls between terminals behind real routers: which way they go, or why there is none."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from socket import inet_ntoa
from typing import Any, Final, NamedTuple

import pytest

from tests.integration.site import PASSWORD, account
from tests.natlab.conftest import Lay
from tests.natlab.lab import CONE, INTERNET, NOT, OUTSIDE, PYTHON, SNIFF, SYMMETRIC, Lab, Router
from tests.natlab.parts import CLOSED, QUIET, SENT, Net
from tests.support.processes import Running

#: Slow: each builds routers of namespaces, and many wait for what a router forgets.
pytestmark = [pytest.mark.integration, pytest.mark.slow]

#: The outsides of the routers A and B.
A = f"{INTERNET}.1"
B = f"{INTERNET}.2"
#: Where nobody is.
NOBODY = f"{INTERNET}.99"

DIRECTLY = "directly"
WITHIN = "in the local network"
BOTH = "by hole punching"
BACK = "by connecting back to us"


class Called(NamedTuple):
    """What became of a call.

    :ivar way: how the two were connected, as the caller was told
    :ivar place: where, for the caller
    :ivar not_by: what it was told of the other ways
    """

    way: str
    place: str
    not_by: str


def start(net: Net, place: str, *arguments: str, caller: str = "Ia", callee: str = "Ib") -> Running:
    """Somebody calls from a place, and is told how the two are connected."""
    return net.begin_call(place, callee, "--verbose", *arguments, caller=caller)


def call(net: Net, place: str, *arguments: str, caller: str = "Ia", callee: str = "Ib") -> Called:
    """The same; what is sent arrives."""
    done = start(net, place, *arguments, caller=caller, callee=callee)
    net.arrives(done, callee)
    found = re.search(r"^connected (.+) at (\S+?)(?:; not (.*))?$", "\n".join(done.err), re.M)
    assert found is not None, done.said
    return Called(found[1], found[2].rpartition(":")[0], found[3] or "")


def refused(net: Net, place: str, *arguments: str, callee: str = "Ib") -> str:
    """Ia calls from a place, and there is no way; what it is told."""
    before = net.received(callee)
    done = start(net, place, *arguments, callee=callee)
    assert done.wait() == 1, done.said
    assert net.received(callee) == before
    return done.err[-1]


class Way(NamedTuple):
    """A way between two places.

    :ivar caller: where the caller is
    :ivar callee: where the callee is
    :ivar quiet: whether the callee holds no connection: it is woken along its mapping (D4)
    :ivar net: what is special of the mediator, and of the routers
    """

    routers: Sequence[Router]
    caller: str
    callee: str
    way: str
    place: str
    quiet: bool = False
    net: Mapping[str, Any] = {}


TWO: Final = (Router("A"), Router("B"))
CLOSED_NET: Final = [Router(name, NOT) for name in "MAB"]
ROUTED: Final = {"prepare": Lab.only_route, "at": "hostM1"}


#: Whichever leads from one place to the other (D8, D10).
WAYS: Final = {
    # Both sides dial, through what their routers have open: no port was opened.
    "cone and cone": Way(TWO, "hostA1", "hostB1", BOTH, B),
    "quiet callee": Way(TWO, "hostA1", "hostB1", BOTH, B, True),
    "resolver apart (C14)": Way(TWO, "hostA1", "hostB1", BOTH, B, True, {"resolver_apart": True}),
    "router behind a router": Way(
        (Router("A", behind="B"), *TWO[1:], Router("C")), "hostA1", "hostC1", BOTH, f"{INTERNET}.3"
    ),
    # The router sends nothing back in.
    "one router": Way([Router("A", hosts=2)], "hostA1", "hostA2", WITHIN, "192.168.1.3"),
    # Whatever router the other one is behind, a public address is dialled, or come to.
    "public callee": Way([Router("A", SYMMETRIC)], "hostA1", "outside", DIRECTLY, OUTSIDE),
    "public caller": Way([Router("B", SYMMETRIC)], "outside", "hostB1", BACK, OUTSIDE),
    # No public address anywhere, routers that only route.
    "closed network": Way(CLOSED_NET, "hostA1", "hostB1", DIRECTLY, "192.168.3.2", False, ROUTED),
}


@pytest.mark.parametrize("row", WAYS.values(), ids=WAYS)
def test_when_there_is_a_way_then_it_is_found(lay: Lay, row: Way) -> None:
    """What a router drops is not waited for."""
    net = lay(*row.routers, **row.net)
    callee = net.terminal(row.callee, "Ib", *(QUIET if row.quiet else ()))
    if row.quiet:
        callee.wait_for(CLOSED)
    called = call(net, row.caller)
    assert called[:2] == (row.way, row.place)
    assert called.not_by == "" or row.way != BOTH
    if row.quiet:
        callee.wait_for(CLOSED)


class TwoNetworksTests:
    """Two private networks with routers that change ports (D8)."""

    @pytest.mark.parametrize(("ours", "theirs"), [(CONE, SYMMETRIC), (SYMMETRIC, CONE)])
    def test_cone_and_symmetric(self, lay: Lay, ours: str, theirs: str) -> None:
        """No way leads there, and the caller is told of each; with one port opened there is one."""
        net = lay(Router("A", ours, natpmp=True), Router("B", theirs))
        net.terminal("hostB1")
        assert call(net, "hostA1", "--open-port")[:2] == (BACK, A)
        assert "dnat" not in net.lab.openings("A")
        why = refused(net, "hostA1")
        assert f"directly at {B}:1203: no answer in 10 seconds" in why
        assert re.search(rf"by hole punching at {B}:\d+: no answer in 10 seconds", why)

    @pytest.mark.parametrize("who", ["caller", "callee"])
    def test_symmetric_and_symmetric(self, lay: Lay, who: str) -> None:
        """With UPnP at one side: the port is opened there, and the other comes to it."""
        routers = (
            Router("A", SYMMETRIC, upnp=who == "caller"),
            Router("B", SYMMETRIC, upnp=who != "caller"),
        )
        net = lay(*routers)
        if who == "caller":
            net.terminal("hostB1")
            assert call(net, "hostA1", "--open-port")[:2] == (BACK, A)
            assert "dnat" not in net.lab.openings("A")
        else:
            callee = net.terminal("hostB1", "Ib", "--open-port")
            callee.wait_for("Reached from outside at")
            assert call(net, "hostA1")[:2] == (DIRECTLY, B)
            callee.end()
            assert "dnat" not in net.lab.openings("B")


class HiddenTests:
    """What is told of where a callee is, and to which caller."""

    def test_told_to_nobody_else(self, lay: Lay) -> None:
        """Where it is in its own network, only those are told who come from there (I1)."""
        net = lay(Router("A", hosts=2), Router("B"))
        net.terminal("hostA2")
        call(net, "hostA1")
        call(net, "hostB1")
        told = [line for line in net.mediator.out if "Callee Address:" in line]
        assert ["Callee Local:192.168.1.3 1203" in line for line in told] == [True, False]

    def test_hidden(self, lay: Lay) -> None:
        """A callee that has named an address is not told of at any other (I1)."""
        net = lay(*TWO)
        net.lab.open_port("B", "tcp", 1203, "hostB1")
        net.terminal("hostB1", "Ib", f"--address={B}")
        assert call(net, "hostA1") == (DIRECTLY, B, "")
        (told,) = [line for line in net.mediator.out if "Callee Address:" in line]
        assert "Callee Seen" not in told

    def test_hidden_from_who_waits(self, lay: Lay) -> None:
        """Nor does it come to whoever waits for it: that one would see where it is (I1)."""
        net = lay(Router("B", SYMMETRIC))
        net.terminal("hostB1", "Ib", f"--address={NOBODY}")
        sniffer = net.lab.start("outside", *PYTHON, SNIFF, "wan")
        sniffer.wait_for("ready")
        why = refused(net, "outside")
        assert f"directly at {NOBODY}:1203" in why
        assert "by connecting back to us at" in why
        (told,) = [line for line in net.mediator.out if "Caller ID:" in line]
        assert f"Caller Back:{OUTSIDE}" in told  # it could have come
        frames = [bytes.fromhex(line) for line in sniffer.out[1:]]
        sources = {inet_ntoa(frame[26:30]) for frame in frames if frame[12:14] == b"\x08\x00"}
        assert net.lab.address("server") in sources
        assert B not in sources
        assert not any(B.encode() in frame for frame in frames)


class TroubleTests:
    """Networks as they are."""

    def test_cause(self, lay: Lay) -> None:
        """Where the inner router opens a port that leads nowhere, it is said why (D9)."""
        net = lay(Router("A", behind="B", upnp=True), Router("B"), Router("C", SYMMETRIC))
        net.terminal("hostC1")
        why = refused(net, "hostA1", "--open-port")
        assert "has no public address: it is not connected, or behind another router" in why
        assert "directly at" in why
        assert "by hole punching at" in why
        assert "dnat" not in net.lab.openings("A")

    def test_loss(self, lay: Lay) -> None:
        """A fifth of all packets is lost on the way to the callee's network, and from there: now
        and then a call is lost with them, and the next one gets through.
        """
        net = lay(*TWO)
        net.terminal("hostB1")
        net.lab.lose("B", 20)
        done = next(call for call in (start(net, "hostA1") for _ in range(3)) if call.wait() == 0)
        assert f"connected by hole punching at {B}:" in done.said
        assert {path.read_bytes() for path in net.received("Ib")} == {SENT}

    def test_no_udp(self, lay: Lay) -> None:
        """No datagram gets through: the callee is found, and asked, by the connection it holds."""
        net = lay(*TWO)
        net.lab.block("B", "udp")
        net.begin("hostB1", "Ib", "--udp=auto").wait_for("is registered$")
        assert call(net, "hostA1")[:2] == (BOTH, B)

    def test_partition(self, lay: Lay) -> None:
        """The callee's network is cut off for a while: nobody reaches it then, and again later."""
        net = lay(*TWO)
        callee = net.terminal("hostB1", "Ib", *QUIET)
        callee.wait_for(CLOSED)
        net.lab.cut("B")
        callee.wait_for("No answer to keepalives")
        net.lab.heal("B")
        assert call(net, "hostA1")[:2] == (BOTH, B)


class OnTheWireTests:
    """What others on the way can read."""

    def test_call(self, lay: Lay) -> None:
        """No name but the callee's in its registration by UDP, no password, no address (I18)."""
        caller, callee = "taro.yamada@example.jp", "hanako.suzuki@example.jp"
        net = lay(*TWO, prepare=lambda lab: account(lab.folder, caller, callee))
        sniffers = [
            net.lab.start(router, *PYTHON, SNIFF, "wan") for router in ("routerA", "routerB")
        ]
        for sniffer in sniffers:
            sniffer.wait_for("ready")
        net.terminal("hostB1", callee, f"--accept={caller}")
        assert call(net, "hostA1", caller=caller, callee=callee)[0] == BOTH
        seen = [bytes.fromhex(line) for one in sniffers for line in one.out[1:]]
        udp = [frame for frame in seen if frame[23] == 17]
        tcp = [frame for frame in seen if frame[23] == 6]
        assert sum(b"REQUEST\r\nSession:" in frame for frame in tcp) == 2  # each saw it
        assert any(callee.encode() in frame for frame in udp)
        assert not any(callee.encode() in frame for frame in tcp)
        secrets = (
            caller.encode(),
            PASSWORD.encode(),
            b"192.168.",
            b"Password",
            SENT[:64],
        )
        for secret in secrets:
            assert not any(secret in frame for frame in seen), secret
        # Whoever asks how it looks from outside is told what the packet's own head says.
        told = [frame for frame in seen if INTERNET.encode() in frame]
        assert all(inet_ntoa(frame[30:34]).encode() in frame for frame in told)
