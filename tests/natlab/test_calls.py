"""Calls between terminals behind real routers: which way they go, or why there is none."""

from __future__ import annotations

import re
from socket import inet_ntoa
from typing import NamedTuple

import pytest

from tests.integration.site import PASSWORD, account
from tests.natlab.conftest import Build
from tests.natlab.lab import CONE, INTERNET, NOT, PYTHON, SNIFF, SYMMETRIC, Router
from tests.natlab.parts import QUIET, Net
from tests.support.processes import BROKER, Running

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


#: What a call brings.
SENT = bytes(range(256)) * 16


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
    """Somebody calls from a place, to send something."""
    sent = net.lab.folder / "sent"
    sent.write_bytes(SENT)
    return net.lab.start(
        place,
        *(*BROKER, "call", "--verbose", f"--as={caller}", callee, f"--send={sent}", *arguments),
        *net.to_mediator(),
    )


def call(net: Net, place: str, *arguments: str, caller: str = "Ia", callee: str = "Ib") -> Called:
    """Somebody calls from a place; what it sends arrives."""
    before = net.received(callee)
    done = start(net, place, *arguments, caller=caller, callee=callee)
    assert done.wait() == 0, done.said
    (fresh,) = net.received(callee) - before
    assert fresh.read_bytes() == SENT
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


class TwoNetworksTests:
    """Two private networks (D8): whichever way leads from one to the other is found."""

    def test_cone_and_cone(self, build: Build) -> None:
        """Both sides dial each other, through what their routers have open; no port was opened."""
        with build(Router("A"), Router("B")) as lab:
            net = Net(lab)
            net.terminal("hostB1")
            way, place, not_by = call(net, "hostA1")
            assert (way, place) == (BOTH, B)
            assert not_by == ""  # it was not waited for what a router dropped

    def test_quiet_callee(self, build: Build) -> None:
        """The same with a callee that holds no connection: it is woken along its mapping (D4)."""
        with build(Router("A"), Router("B")) as lab:
            net = Net(lab)
            callee = net.terminal("hostB1", "Ib", *QUIET)
            callee.wait_for("Idle: closing the connection")
            assert call(net, "hostA1")[:2] == (BOTH, B)
            callee.wait_for("Idle: closing the connection")

    def test_resolver_apart(self, build: Build) -> None:
        """The same with the resolver in a process of its own (C14)."""
        with build(Router("A"), Router("B")) as lab:
            net = Net(lab, resolver_apart=True)
            callee = net.terminal("hostB1", "Ib", *QUIET)
            callee.wait_for("Idle: closing the connection")
            assert call(net, "hostA1")[:2] == (BOTH, B)

    @pytest.mark.parametrize(("ours", "theirs"), [(CONE, SYMMETRIC), (SYMMETRIC, CONE)])
    def test_cone_and_symmetric(self, build: Build, ours: str, theirs: str) -> None:
        """No way leads there, and the caller is told of each; with one port opened there is one."""
        with build(Router("A", ours, natpmp=True), Router("B", theirs)) as lab:
            net = Net(lab)
            net.terminal("hostB1")
            assert call(net, "hostA1", "--open-port")[:2] == (BACK, A)
            assert "dnat" not in lab.openings("A")
            why = refused(net, "hostA1")
            assert f"directly at {B}:1203: no answer in 10 seconds" in why
            assert re.search(rf"by hole punching at {B}:\d+: no answer in 10 seconds", why)

    @pytest.mark.parametrize("who", ["caller", "callee"])
    def test_symmetric_and_symmetric(self, build: Build, who: str) -> None:
        """With UPnP at one side: the port is opened there, and the other comes to it."""
        routers = (
            Router("A", SYMMETRIC, upnp=who == "caller"),
            Router("B", SYMMETRIC, upnp=who != "caller"),
        )
        with build(*routers) as lab:
            net = Net(lab)
            if who == "caller":
                net.terminal("hostB1")
                assert call(net, "hostA1", "--open-port")[:2] == (BACK, A)
                assert "dnat" not in lab.openings("A")
            else:
                callee = net.terminal("hostB1", "Ib", "--open-port")
                callee.wait_for("Reached from outside at")
                assert call(net, "hostA1")[:2] == (DIRECTLY, B)
                callee.end()
                assert "dnat" not in lab.openings("B")


class NearTests:
    """Where no router is in between, none is needed."""

    def test_one_router(self, build: Build) -> None:
        """Two behind one router, which sends nothing back in: within their own network."""
        with build(Router("A", hosts=2)) as lab:
            net = Net(lab)
            net.terminal("hostA2")
            assert call(net, "hostA1")[:2] == (WITHIN, "192.168.1.3")

    def test_told_to_nobody_else(self, build: Build) -> None:
        """Where it is in its own network, only those are told who come from there (I1)."""
        with build(Router("A", hosts=2), Router("B")) as lab:
            net = Net(lab)
            net.terminal("hostA2")
            call(net, "hostA1")
            call(net, "hostB1")
            told = [line for line in net.mediator.out if "Callee Address:" in line]
            assert ["Callee Local:192.168.1.3 1203" in line for line in told] == [True, False]

    def test_public_callee(self, build: Build) -> None:
        """A callee with a public address is dialled, whatever router the caller is behind (D10)."""
        with build(Router("A", SYMMETRIC)) as lab:
            net = Net(lab)
            net.terminal("outside")
            assert call(net, "hostA1")[:2] == (DIRECTLY, f"{INTERNET}.20")

    def test_public_caller(self, build: Build) -> None:
        """A caller with a public address is come to, whatever router the callee is behind (D10)."""
        with build(Router("B", SYMMETRIC)) as lab:
            net = Net(lab)
            net.terminal("hostB1")
            assert call(net, "outside")[:2] == (BACK, f"{INTERNET}.20")

    def test_closed_network(self, build: Build) -> None:
        """No public address anywhere, routers that only route: directly (D10)."""
        with build(*(Router(name, NOT) for name in "MAB")) as lab:
            lab.only_route()
            net = Net(lab, at="hostM1")
            net.terminal("hostB1")
            assert call(net, "hostA1")[:2] == (DIRECTLY, "192.168.3.2")

    def test_hidden(self, build: Build) -> None:
        """A callee that has named an address is not told of at any other (I1)."""
        with build(Router("A"), Router("B")) as lab:
            lab.open_port("B", "tcp", 1203, "hostB1")
            net = Net(lab)
            net.terminal("hostB1", "Ib", f"--address={B}")
            assert call(net, "hostA1") == (DIRECTLY, B, "")
            (told,) = [line for line in net.mediator.out if "Callee Address:" in line]
            assert "Callee Seen" not in told

    def test_hidden_from_who_waits(self, build: Build) -> None:
        """Nor does it come to whoever waits for it: that one would see where it is (I1)."""
        with build(Router("B", SYMMETRIC)) as lab:
            net = Net(lab)
            net.terminal("hostB1", "Ib", f"--address={NOBODY}")
            sniffer = lab.start("outside", *PYTHON, SNIFF, "wan")
            sniffer.wait_for("ready")
            why = refused(net, "outside")
            assert f"directly at {NOBODY}:1203" in why
            assert "by connecting back to us at" in why
            (told,) = [line for line in net.mediator.out if "Caller ID:" in line]
            assert f"Caller Back:{INTERNET}.20" in told  # it could have come
            frames = [bytes.fromhex(line) for line in sniffer.out[1:]]
            sources = {inet_ntoa(frame[26:30]) for frame in frames if frame[12:14] == b"\x08\x00"}
            assert lab.address("server") in sources
            assert B not in sources
            assert not any(B.encode() in frame for frame in frames)


class TwoRoutersTests:
    """A router behind a router."""

    def test_cones(self, build: Build) -> None:
        """Both sides dial, whatever number of routers keep to one port."""
        with build(Router("A", behind="B"), Router("B"), Router("C")) as lab:
            net = Net(lab)
            net.terminal("hostC1")
            assert call(net, "hostA1")[:2] == (BOTH, f"{INTERNET}.3")

    def test_cause(self, build: Build) -> None:
        """Where the inner router opens a port that leads nowhere, it is said why (D9)."""
        with build(Router("A", behind="B", upnp=True), Router("B"), Router("C", SYMMETRIC)) as lab:
            net = Net(lab)
            net.terminal("hostC1")
            why = refused(net, "hostA1", "--open-port")
            assert "has no public address: it is not connected, or behind another router" in why
            assert "directly at" in why
            assert "by hole punching at" in why
            assert "dnat" not in lab.openings("A")


class TroubleTests:
    """Networks as they are."""

    def test_loss(self, build: Build) -> None:
        """A fifth of all packets is lost on the way to the callee's network, and from there: now
        and then a call is lost with them, and the next one gets through.
        """
        with build(Router("A"), Router("B")) as lab:
            net = Net(lab)
            net.terminal("hostB1")
            lab.lose("B", 20)
            done = next(
                call for call in (start(net, "hostA1") for _ in range(3)) if call.wait() == 0
            )
            assert f"connected by hole punching at {B}:" in done.said
            assert {path.read_bytes() for path in net.received("Ib")} == {SENT}

    def test_no_udp(self, build: Build) -> None:
        """No datagram gets through: the callee is found, and asked, by the connection it holds."""
        with build(Router("A"), Router("B")) as lab:
            lab.block("B", "udp")
            net = Net(lab)
            net.begin("hostB1", "Ib", "--udp=auto").wait_for("is registered$")
            assert call(net, "hostA1")[:2] == (BOTH, B)

    def test_partition(self, build: Build) -> None:
        """The callee's network is cut off for a while: nobody reaches it then, and again later."""
        with build(Router("A"), Router("B")) as lab:
            net = Net(lab)
            callee = net.terminal("hostB1", "Ib", *QUIET)
            callee.wait_for("Idle: closing the connection")
            lab.cut("B")
            callee.wait_for("No answer to keepalives")
            lab.heal("B")
            assert call(net, "hostA1")[:2] == (BOTH, B)


class OnTheWireTests:
    """What others on the way can read."""

    def test_call(self, build: Build) -> None:
        """No name but the callee's in its registration by UDP, no password, no address (I18)."""
        caller, callee = "taro.yamada@example.jp", "hanako.suzuki@example.jp"
        with build(Router("A"), Router("B")) as lab:
            account(lab.folder, caller, callee)
            net = Net(lab)
            sniffers = [
                lab.start(router, *PYTHON, SNIFF, "wan") for router in ("routerA", "routerB")
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
