"""Lines that a router between has forgotten, and that both ends believe in."""

from __future__ import annotations

from typing import Final

import pytest

from tests.natlab.conftest import Lay
from tests.natlab.lab import CONE, SERVER, Lab, Router
from tests.natlab.parts import ASKED, count, until

#: Slow: each builds routers of namespaces, and many wait for what a router forgets.
pytestmark = [pytest.mark.integration, pytest.mark.slow]

#: The time in which a call is decided: what a mediator gives it if it is not told otherwise.
DECIDED: Final = "--status-timeout=5"

#: What a router does with a connection of which it has not seen the beginning: it takes it up as
#: soon as something comes from within, or doesn't; or tells whoever is outside that there is none.
LOOSE, STRICT, RESETS = "loose", "strict", "resets"


def forget(lab: Lab, kind: str) -> None:
    """Have the router restart, and remember the way of the datagrams again, under the same port."""
    tracking = "/proc/sys/net/netfilter/nf_conntrack_tcp_loose"
    lab.run("routerA", "sh", "-ec", f"echo {int(kind != STRICT)} > {tracking}")
    lab.run("routerA", "nft", "insert rule inet filter forward ct state invalid drop")
    if kind == RESETS:
        line = f"iifname wan ip saddr {SERVER} tcp sport 1202 ct state new"
        lab.run("routerA", "nft", f"insert rule inet filter input {line} reject with tcp reset")
    lab.forget_mappings("A")
    remembered = ("conntrack", "-L", "-p", "udp")
    until(lambda: "dport=1200" in lab.run("routerA", *remembered, check=False).stdout)


class DeadLineTests:
    """A callee holds a line of which its router knows nothing more."""

    @pytest.mark.parametrize(
        ("kind", "policy"), [(LOOSE, "list"), (STRICT, "list"), (STRICT, "ask"), (RESETS, "list")]
    )
    def test_called(self, lay: Lay, kind: str, policy: str) -> None:
        """It is asked for a line along the way of its datagrams, and the very call that met the
        dead one is granted in its time (D1, E1, E11). The router shows the old port to all, so
        that nothing else tells either end.
        """
        net = lay(Router("A", translation=CONE), options=[DECIDED])
        net.lab.open_port("A", "tcp", 1203, "hostA1")
        more = []
        if policy == "ask":
            (net.lab.folder / "Ib.consent").write_text("+ Ia\n")
            more = [f"--consent-file={net.lab.folder / 'Ib.consent'}"]
        terminal = net.terminal("hostA1", "Ib", f"--policy={policy}", *more)
        net.call()
        assert count(terminal, ASKED) == 0
        forget(net.lab, kind)
        net.call()
        assert count(terminal, ASKED) > 0
        # One that is taken up again is the line that is answered on.
        assert count(terminal, "is registered$") == 1 + (kind != LOOSE)
