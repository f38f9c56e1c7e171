"""Where a terminal is seen, and whether it can be reached there (broker.mediator.address_check)."""

from __future__ import annotations

from typing import Any

import pytest

from broker.mediator.address_check import TRIES_A_SOURCE, TRIES_A_TERMINAL
from broker.mediator.wakeup_dialer import DIAL_TIMEOUT, TESTS_MOST
from broker.tables.rate_limits import WINDOW
from tests.mediator.scene import DENIED, DONE, REQUESTED, TOO_MANY, Scene, Waker, bad, register

HOST = "203.0.113.7"
TOO_OFTEN = "NOTIFY\nToo Many Requests.\nCause:too many port checks: wait a minute\n\n"


def asks(who: str = "Ia", port: int | None = None, *lines: str) -> str:
    """The question."""
    named = [] if port is None else [f"Port:{port}"]
    return "\n".join(["QUERY", "ADDRESS", f"Identifier:{who}", *named, *lines, "", ""])


def told(port: int, host: str = HOST) -> str:
    """The answer."""
    return f"NOTIFY\nAddress:{host}\nPort:{port}\n\n"


def not_reached(port: int, host: str = HOST) -> str:
    """The answer where nothing answers."""
    cause = f"nothing answers at {host} port {port} from here"
    return f"NOTIFY\nNot Reached.\nCause:{cause}\n\n"


def a_scene(**options: Any) -> Scene:
    """Ia is connected from outside."""
    scene = Scene(**options)
    scene.connect("a", host=HOST)
    return scene


def source(scene: Scene, name: str = "a") -> int:
    """The port that a terminal's connection comes from."""
    port: int = scene.clients[name].transport.peer.port  # type: ignore[union-attr]
    return port


class SeenTests:
    """A terminal is told its own source, and nothing else (D10, I1)."""

    def test_when_a_terminal_asks_then_it_is_told_its_source(self) -> None:
        """Bare, or with a code."""
        scene = a_scene()
        scene.says("a", asks(), a=told(source(scene)))
        answer = told(source(scene)).removesuffix("\n") + "Transaction:1\nCode:200\n\n"
        scene.says("a", asks("Ia", None, "Transaction:1"), a=answer)
        assert scene.dials == []

    def test_when_another_is_named_then_a_terminal_is_told_its_own_source(self) -> None:
        """Of no other it is told anything."""
        scene = a_scene()
        scene.on_line("b", host="203.0.113.8")
        scene.says("a", asks("Ia", None, "Callee:Ib"), a=told(source(scene)))
        scene.says("b", asks("Ia"), b=DENIED)

    def test_when_the_source_is_an_ipv4_mapped_address_then_ipv4_is_told(self) -> None:
        """It is told as the IPv4 address that it is."""
        scene = Scene()
        scene.connect("a", host=f"::ffff:{HOST}")
        scene.says("a", asks(), a=told(source(scene)))

    def test_when_a_connection_has_not_logged_in_then_it_is_told_nothing(self) -> None:
        scene = a_scene(accounts={"Ia": "secret"})
        scene.clients["a"].type(asks())
        assert "Login Required." in scene.heard("a")


class TriedTests:
    """The mediator tries that very source, and nowhere else (I12)."""

    def test_when_the_port_is_open_then_that_is_told(self) -> None:
        """The terminal gets the notice there, and nothing else."""
        scene = a_scene()
        scene.says("a", asks(port=1203))
        (dial,) = scene.dials
        assert (dial.host, dial.port) == (HOST, 1203)
        there = dial.accept()
        assert (there.text(), there.closed) == (REQUESTED, True)
        scene.reads(a=told(1203))

    def test_when_the_port_is_closed_then_that_is_told(self) -> None:
        """It may ask again."""
        scene = a_scene()
        scene.says("a", asks(port=1203))
        scene.dials[0].refuse()
        scene.reads(a=not_reached(1203))
        scene.says("a", asks(port=1203))
        scene.dials[1].accept()
        scene.reads(a=told(1203))

    def test_when_packets_are_dropped_then_the_check_ends_soon(self) -> None:
        scene = a_scene()
        scene.says("a", asks(port=1203))
        scene.passes(DIAL_TIMEOUT - 0.1)
        scene.passes(0.1, a=not_reached(1203))
        assert scene.dials[0].over

    def test_when_the_time_to_decide_is_short_then_so_is_the_check(self) -> None:
        scene = a_scene(status_timeout=1)
        scene.says("a", asks(port=1203))
        scene.passes(1, a=not_reached(1203))
        assert scene.dials[0].over

    def test_when_the_terminal_leaves_then_the_check_ends(self) -> None:
        scene = a_scene()
        scene.says("a", asks(port=1203))
        scene.leaves("a")
        assert scene.dials[0].over

    @pytest.mark.parametrize("host", ["127.0.0.1", "198.51.100.9"])
    def test_when_an_address_is_named_then_it_is_ignored(self, host: str) -> None:
        """The source is checked, and nothing else."""
        scene = a_scene()
        scene.says("a", asks("Ia", 1203, f"Address:{host}"))
        assert scene.dials[0].host == HOST
        scene.dials[0].accept()
        scene.reads(a=told(1203))

    def test_when_the_port_is_the_servers_own_then_it_is_not_dialled(self) -> None:
        scene = a_scene(own_ports={1201, 1202})
        scene.says("a", asks(port=1202), a=bad("the port is one of the server's own"))
        assert scene.dials == []

    @pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
    def test_when_the_source_is_the_servers_own_machine_then_it_is_not_dialled(
        self, host: str
    ) -> None:
        """All who come through a tunnel or proxy there have that source. It is told it."""
        scene = Scene()
        scene.connect("a", host=host)
        refused = bad("no port on the server's own machine is checked")
        scene.says("a", asks(port=4000), a=refused)
        assert scene.dials == []
        seen = host.removeprefix("::ffff:")
        scene.says("a", asks(), a=told(source(scene), seen))

    def test_when_the_mediator_has_no_dialler_then_it_says_so(self) -> None:
        scene = a_scene(trigger=Waker())
        unavailable = "NOTIFY\nService Unavailable.\nCause:this server checks no ports\n\n"
        scene.says("a", asks(port=1203), a=unavailable)
        scene.says("a", asks(), a=told(source(scene)))


class BoundsTests:
    """It is of no use to look for open ports with (I15, I16)."""

    def tries(self, scene: Scene, name: str, who: str, ports: range) -> None:
        """One after the other; none is open."""
        for port in ports:
            scene.says(name, asks(who, port))
            scene.dials[-1].refuse()
            scene.reads(**{name: not_reached(port)})

    def test_when_a_terminal_checks_a_second_port_then_that_is_refused(self) -> None:
        """One at a time, over all its connections."""
        scene = a_scene()
        scene.new_says("a2", register("Ia"), DONE, host=HOST)
        scene.says("a", asks(port=4000))
        scene.says("a2", asks(port=4001), a2=TOO_MANY)
        scene.dials[0].refuse()
        scene.reads(a=not_reached(4000))
        assert len(scene.dials) == 1

    def test_when_a_terminal_checks_too_many_ports_then_it_must_wait(self) -> None:
        """Wherever it comes from; it is told its source even so."""
        scene = a_scene()
        self.tries(scene, "a", "Ia", range(4000, 4000 + TRIES_A_TERMINAL))
        scene.says("a", asks(port=5000), a=TOO_OFTEN)
        scene.new_says("a2", asks("Ia", 5000), TOO_OFTEN, host="203.0.113.9")
        scene.says("a", asks(), a=told(source(scene)))
        assert len(scene.dials) == TRIES_A_TERMINAL
        scene.passes(WINDOW)
        self.tries(scene, "a", "Ia", range(5000, 5001))

    def test_when_one_source_checks_too_many_ports_then_it_must_wait(self) -> None:
        """However many terminals are there."""
        scene = a_scene()
        for n in range(TRIES_A_SOURCE // TRIES_A_TERMINAL):
            name = "bcd"[n]
            scene.connect(name, host=HOST)
            self.tries(scene, name, f"I{name}", range(4000, 4000 + TRIES_A_TERMINAL))
        scene.says("a", asks(port=4000), a=TOO_OFTEN)

    def test_when_too_many_ports_are_checked_at_once_then_one_more_is_refused(self) -> None:
        """A terminal is woken even so."""
        scene = Scene()
        for n in range(TESTS_MOST):
            scene.connect(f"a{n}", host=f"203.0.113.{n + 1}")
            scene.says(f"a{n}", asks(f"I{n}", 4000))
        scene.connect("b", host="198.51.100.1")
        scene.says("b", asks("Ib", 4000), b=TOO_MANY)
        assert len(scene.dials) == TESTS_MOST
        scene.dials[0].refuse()
        scene.reads(a0=not_reached(4000, "203.0.113.1"))
        scene.says("b", asks("Ib", 4000))
        assert len(scene.dials) == TESTS_MOST + 1
        for n, dial in enumerate(scene.dials[1:TESTS_MOST], 1):
            dial.refuse()
            scene.reads(**{f"a{n}": not_reached(4000, f"203.0.113.{n + 1}")})
        scene.dials[-1].refuse()
        scene.reads(b=not_reached(4000, "198.51.100.1"))

    def test_when_the_server_stops_then_no_dial_is_left(self) -> None:
        scene = a_scene()
        scene.says("a", asks(port=4000))
        dialler: Any = scene.broker.trigger
        dialler.stop()
        assert scene.dials[0].over
        scene.reads(a=not_reached(4000))
