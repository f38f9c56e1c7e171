"""Terminals behind real routers, registered by UDP and woken along the way that this keeps open."""

from __future__ import annotations

import re
import time

import pytest

from tests.integration.site import PASSWORD, account
from tests.natlab.conftest import Lay
from tests.natlab.lab import (
    CONE,
    OUTSIDE,
    PYTHON,
    SERVER,
    SNIFF,
    SPOOF,
    SYMMETRIC,
    Datagram,
    Lab,
    Router,
    datagrams,
)
from tests.natlab.parts import ASKED, CLOSED, QUIET, SEEN, count, until
from tests.support.processes import Running

#: Slow: each builds routers of namespaces, and many wait for what a router forgets.
pytestmark = [pytest.mark.integration, pytest.mark.slow]


def come_back(terminal: Running, address: str | None = None) -> None:
    """Wait until a terminal is seen elsewhere, and quiet again if it had to connect."""
    found = terminal.wait_for(SEEN)
    assert address is None or found[1] == address


class RegistrationTests:
    """What the server knows of a terminal is what it looks like from outside."""

    @pytest.mark.parametrize(
        ("translation", "apart"), [(CONE, False), (SYMMETRIC, False), (CONE, True)]
    )
    def test_seen(self, lay: Lay, translation: str, apart: bool) -> None:
        """A quiet terminal is seen with its router's address, and called there (D1, E1, C3, E11).

        So it is where the router gives it another port towards each that it speaks with, and with
        the resolver as a process of its own (A15, C14).
        """
        net = lay(Router("A", translation=translation), resolver_apart=apart)
        terminal = net.quiet("A", "hostA1")
        found = next(filter(None, (re.search(SEEN, line) for line in terminal.out)))
        assert found[1] == net.lab.address("routerA")
        net.call()
        assert net.told() == net.lab.address("routerA")
        assert count(terminal, ASKED) >= 1
        terminal.wait_for(CLOSED)
        net.call()

    def test_two_behind_one_router(self, lay: Lay) -> None:
        """Two behind one router are told apart by their ports there, and each is woken (E3)."""
        net = lay(Router("A", hosts=2))
        ib = net.quiet("A", "hostA1")
        ic = net.quiet("A", "hostA2", "Ic", 1303)
        net.call("Ic")
        assert (count(ib, ASKED), count(ic, ASKED) > 0) == (0, True)
        net.call("Ib")
        assert count(ib, ASKED) > 0


class FaultTests:
    """Routers forget, change and lose; the terminal is reached again without anybody's help."""

    def test_mappings_forgotten(self, lay: Lay) -> None:
        """A router that has forgotten all is spoken through again after a keepalive (D1)."""
        net = lay(Router("A", translation=SYMMETRIC))
        terminal = net.quiet("A", "hostA1")
        net.lab.forget_mappings("A")
        come_back(terminal, net.lab.address("routerA"))
        net.call()

    def test_renumbered(self, lay: Lay) -> None:
        """A router that gets another address is called there (D1, A7)."""
        net = lay(Router("A"))
        terminal = net.quiet("A", "hostA1")
        net.lab.renumber("A", "11.0.113.77")
        come_back(terminal, "11.0.113.77")
        net.call()
        assert net.told() == "11.0.113.77"

    def test_renumbered_with_a_line(self, lay: Lay) -> None:
        """A terminal that holds its line makes another, where its old one is dead (D1)."""
        net = lay(Router("A"))
        net.lab.open_port("A", "tcp", 1203, "hostA1")
        terminal = net.terminal("hostA1")
        net.call()
        net.lab.renumber("A", "11.0.113.77")
        come_back(terminal, "11.0.113.77")
        terminal.wait_for("is registered$")
        net.call()
        assert net.told() == "11.0.113.77"

    def test_dead_line(self, lay: Lay) -> None:
        """A mediator that has restarted, unheard, has no connection of a terminal that believes to
        hold one: it asks for it by UDP, and has it before the call is over (E2, E11).
        """
        net = lay(Router("A"), resolver_apart=True)
        net.lab.open_port("A", "tcp", 1203, "hostA1")
        terminal = net.terminal("hostA1")
        unheard = f"add rule inet filter fault ip saddr {SERVER} tcp flags & fin == fin drop"
        net.lab.run("routerA", "nft", unheard)
        net.mediator.kill()
        net.start_mediator()
        net.call()
        assert count(terminal, ASKED) > 0
        assert count(terminal, "is registered$") == 2

    def test_router_restarts(self, lay: Lay) -> None:
        """Away for a while, then back with nothing in mind: the terminal is there again (E1)."""
        net = lay(Router("A"))
        terminal = net.quiet("A", "hostA1")
        net.lab.cut("A")
        net.lab.forget_mappings("A")
        terminal.wait_for("No answer to keepalives: connecting to the mediator")
        net.lab.heal("A")
        terminal.wait_for("is registered$")
        terminal.wait_for(CLOSED)
        net.call()

    def test_partition(self, lay: Lay) -> None:
        """A short partition costs nothing: a keepalive is repeated, and all is as before (E1)."""
        net = lay(Router("A"))
        terminal = net.quiet("A", "hostA1")
        net.lab.cut("A")
        time.sleep(2)
        net.lab.heal("A")
        net.call()
        assert count(terminal, "without an answer") == 0

    def test_short_memory(self, lay: Lay) -> None:
        """A router that forgets after 2 s of silence makes the interval shorter than that (E1)."""
        net = lay(Router("A", translation=SYMMETRIC, udp_timeout=2), interval=3)
        terminal = net.quiet("A", "hostA1")
        until(lambda: count(terminal, SEEN) >= 2)
        steady = time.monotonic()
        seen = count(terminal, SEEN)
        while time.monotonic() - steady < 4:
            time.sleep(0.1)
            if count(terminal, SEEN) != seen:
                seen, steady = count(terminal, SEEN), time.monotonic()
            assert seen < 8
        net.call()
        assert count(terminal, ASKED) > 0

    def test_loss(self, lay: Lay) -> None:
        """With one of five packets lost either way it stays reached (E1, E11)."""
        net = lay(Router("A"))
        net.quiet("A", "hostA1")
        net.lab.lose("A", 20)
        time.sleep(3)
        net.call()


class StrangerTests:
    """What others on the way, or beside it, can do and see."""

    def test_forged_and_replayed(self, lay: Lay) -> None:
        """Notices that are replayed or forged, from the server's very address, do nothing (E3).

        They get through the router, since they look like the server's; the terminal ignores them,
        and is woken by a genuine one as before (I26).
        """
        net = lay(Router("A"))
        terminal = net.quiet("A", "hostA1")
        wire = net.lab.start("inet", *PYTHON, SNIFF, "server")
        wire.wait_for("ready")
        net.call()
        terminal.wait_for(CLOSED)
        seen = caught(net.lab, wire)
        asked = count(terminal, ASKED)
        genuine = [one.data for one in seen if b"Connection Requested." in one.data][-1]
        keepalive = [one for one in seen if one.data.startswith(b"REGISTER")][-1]
        host, port = keepalive.source
        old, new = (re.search(rb"Key ID:(\S+)", data) for data in (genuine, keepalive.data))
        assert old is not None
        assert new is not None
        fresh = genuine.replace(old[1], new[1])  # in all but its signature
        forged = [
            genuine,
            fresh,
            fresh.replace(b"Signature:", b"Padding:"),
            keepalive.data.replace(b"REGISTER", b"NOTIFY\r\nConnection Requested."),
            b"NOTIFY\r\nConnection Requested.\r\nIdentifier:Ib\r\n\r\n",
            b"NOTIFY\r\nConnection Requested.\r\n\r\n",
            b"\xff" * 1200,
        ]
        inside = net.lab.start("hostA1", *PYTHON, SNIFF, "eth0")
        inside.wait_for("ready")
        for datagram in forged:
            spoof = (*PYTHON, SPOOF, SERVER, "1200", host, str(port), datagram.hex())
            net.lab.run("outside", *spoof)
        until(
            lambda: {one.data for one in datagrams(inside.out)}.issuperset(forged),
        )
        registered = count(net.mediator, "< REGISTER / Identifier:Ib")
        time.sleep(1)
        assert count(net.mediator, "< REGISTER / Identifier:Ib") == registered
        assert count(terminal, ASKED) == asked
        net.call()
        assert count(terminal, ASKED) > asked

    def test_on_the_wire(self, lay: Lay) -> None:
        """By UDP goes who registers, and that a connection is asked for: of a caller, a password,
        a key or anybody's else address nothing is to be read (D12, I18, I25).
        """
        caller = "taro.yamada@example.jp"  # no chance to be found in what is drawn at random
        net = lay(Router("A"), prepare=lambda lab: account(lab.folder, caller))
        wire = net.lab.start("inet", *PYTHON, SNIFF, "server")
        wire.wait_for("ready")
        net.lab.open_port("A", "tcp", 1203, "hostA1")
        terminal = net.terminal("hostA1", "Ib", f"--accept={caller}", *QUIET)
        terminal.wait_for(CLOSED)
        net.call(caller=caller)
        assert count(terminal, ASKED) > 0
        seen = caught(net.lab, wire)
        frames = b"\n".join(bytes.fromhex(line) for line in list(wire.out)[1:])
        secrets = (PASSWORD.encode(), b"Registration Key", b"Token:", b"Encrypt Key")
        for secret in (*secrets, caller.encode()):
            assert secret not in frames
        said = {line for one in seen for line in _fields(one.data)}
        assert said <= {
            *("REGISTER", "NOTIFY", "QUERY", "ADDRESS"),
            *("Registration Completed.", "Connection Requested."),
            *("Identifier:Ib", "Key ID", "Expires", "Challenge", "Sequence", "Signature"),
            *("Transaction", "Code", "Padding", "Port"),
            f"Address:{net.lab.address('routerA')}",
        }


def caught(lab: Lab, wire: Running) -> list[Datagram]:
    """The datagrams that have passed the server's cable by now: all those before another one."""
    marker = b"so far"
    lab.run("outside", *PYTHON, SPOOF, OUTSIDE, "9", SERVER, "9", marker.hex())
    until(lambda: any(one.data == marker for one in datagrams(wire.out)))
    return [one for one in datagrams(wire.out) if one.data != marker]


def _fields(datagram: bytes) -> set[str]:
    """The lines of a datagram: whole where they say who or where somebody is, else their names."""
    lines = datagram.decode().split("\r\n")[:-2]
    told = ("Identifier:", "Address:")
    return {line if line.startswith(told) else line.partition(":")[0] for line in lines}
