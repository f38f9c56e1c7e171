"""Where a terminal is seen, and whether it can be reached there (broker.mediator.address_check)."""

from __future__ import annotations

from typing import Any, Final

import pytest

from broker.mediator.address_check import TRIES_A_SOURCE, TRIES_A_TERMINAL
from broker.mediator.wakeup_dialer import DIAL_TIMEOUT, TESTS_MOST
from broker.tables.rate_limits import WINDOW
from tests.mediator.scene import DENIED, TOO_MANY, Scene, Waker, bad
from tests.mediator.steps import (
    Step,
    connect,
    dial,
    dialled,
    holds,
    leaves,
    on_line,
    passes,
    play,
    reads,
    registers,
    says,
)

HOST: Final = "203.0.113.7"
TOO_OFTEN: Final = "NOTIFY\nToo Many Requests.\nCause:too many port checks: wait a minute\n\n"


def asks(who: str = "Ia", port: int | None = None, *lines: str) -> str:
    """The question."""
    named = [] if port is None else [f"Port:{port}"]
    return "\n".join(["QUERY", "ADDRESS", f"Identifier:{who}", *named, *lines, "", ""])


def told(port: int, host: str = HOST, more: str = "") -> str:
    """The answer."""
    return f"NOTIFY\nAddress:{host}\nPort:{port}\n{more}\n"


def not_reached(port: int, host: str = HOST) -> str:
    """The answer where nothing answers."""
    cause = f"nothing answers at {host} port {port} from here"
    return f"NOTIFY\nNot Reached.\nCause:{cause}\n\n"


def a_scene(host: str = HOST, **options: Any) -> Scene:
    """Ia is connected from outside."""
    scene = Scene(own_ports={1201, 1202}, **options)
    scene.connect("a", host=host)
    return scene


def sees(*lines: str, host: str = HOST, more: str = "") -> Step:
    """Ia asks where it is seen, and is told its own source."""

    def step(scene: Scene) -> None:
        transport: Any = scene.clients["a"].transport
        scene.says("a", asks("Ia", None, *lines), a=told(transport.peer.port, host, more))

    return step


def tries(name: str, who: str, ports: range) -> list[Step]:
    """A terminal checks one port after the other; none is open."""
    return [
        step
        for port in ports
        for step in (
            says(name, asks(who, port)),
            dial(succeeds=False, **{name: not_reached(port)}),
        )
    ]


def stop_dialler(scene: Scene) -> None:
    """The server stops."""
    dialler: Any = scene.broker.trigger
    dialler.stop()


CHECK: Final = says("a", asks(port=1203))
OPEN: Final = dial(succeeds=True, a=told(1203))
#: The only dial is over, and was made to where Ia is seen.
OVER: Final = holds(
    lambda scene: [(made.host, made.over) for made in scene.dials] == [(HOST, True)]
)
MOST: Final = range(4000, 4000 + TRIES_A_TERMINAL)
OTHERS: Final = "bcdefghijk"[: TRIES_A_SOURCE // TRIES_A_TERMINAL]
# fmt: off
CASES: Final[dict[str, list[Step]]] = {
    # A terminal is told its own source, bare or with a code, and nothing of another (D10, I1).
    "seen": [
        sees(), sees("Transaction:1", more="Transaction:1\nCode:200\n"),
        on_line("b", host="203.0.113.8"), sees("Callee:Ib"), says("b", asks("Ia"), b=DENIED),
        dialled(),
    ],
    # The mediator tries that very source (I12): the terminal gets the notice there, and only that.
    "open": [CHECK, OPEN, OVER, dialled(1203)],
    # It may ask again.
    "closed": [CHECK, dial(succeeds=False, a=not_reached(1203)), CHECK, OPEN],
    "packets are dropped": [
        CHECK, passes(DIAL_TIMEOUT - 0.1), passes(0.1, a=not_reached(1203)), OVER,
    ],
    "leaves": [CHECK, leaves("a"), OVER],
    # The source is checked, and nothing else.
    **{
        f"names {host}": [says("a", asks("Ia", 1203, f"Address:{host}")), OPEN, OVER]
        for host in ("127.0.0.1", "198.51.100.9")
    },
    "the server's own port": [
        says("a", asks(port=1202), a=bad("the port is one of the server's own")), dialled(),
    ],
    # One at a time, over all its connections (I15, I16).
    "a second port": [
        connect("a2", host=HOST), registers("a2"), says("a", asks(port=4000)),
        says("a2", asks(port=4001), a2=TOO_MANY), dial(succeeds=False, a=not_reached(4000)),
        dialled(4000),
    ],
    # Wherever it comes from; it is told its source even so.
    "too many ports": [
        *tries("a", "Ia", MOST), says("a", asks(port=5000), a=TOO_OFTEN),
        connect("a2", host="203.0.113.9"), says("a2", asks("Ia", 5000), a2=TOO_OFTEN), sees(),
        dialled(*MOST), passes(WINDOW), *tries("a", "Ia", range(5000, 5001)),
    ],
    # However many terminals are there.
    "too many ports of one source": [
        connect(*OTHERS, host=HOST),
        *(step for name in OTHERS for step in tries(name, f"I{name}", MOST)),
        says("a", asks(port=4000), a=TOO_OFTEN),
    ],
    "the server stops": [CHECK, stop_dialler, OVER, reads(a=not_reached(1203))],
}
# fmt: on


@pytest.mark.parametrize("case", CASES)
def test_when_a_terminal_asks_then_only_its_source_is_told_and_checked(case: str) -> None:
    """It is of no use to look for open ports with (D10, I1, I12, I15, I16)."""
    play(a_scene(), *CASES[case])


def test_when_the_source_is_an_ipv4_mapped_address_then_ipv4_is_told() -> None:
    """It is told as the IPv4 address that it is."""
    play(a_scene(f"::ffff:{HOST}"), sees())


def test_when_a_connection_has_not_logged_in_then_it_is_told_nothing() -> None:
    """As with any request."""
    scene = a_scene(accounts={"Ia": "secret"})
    scene.clients["a"].type(asks())
    assert "Login Required." in scene.heard("a")


def test_when_the_time_to_decide_is_short_then_so_is_the_check() -> None:
    """It ends with the time in which any request is decided."""
    play(a_scene(status_timeout=1), CHECK, passes(1, a=not_reached(1203)), OVER)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
def test_when_the_source_is_the_servers_own_machine_then_it_is_not_dialled(host: str) -> None:
    """All who come through a tunnel or proxy there have that source. It is told it."""
    refused = bad("no port on the server's own machine is checked")
    seen = sees(host=host.removeprefix("::ffff:"))
    play(a_scene(host), says("a", asks(port=4000), a=refused), dialled(), seen)


def test_when_the_mediator_has_no_dialler_then_it_says_so() -> None:
    """It tells a terminal its source even so."""
    unavailable = "NOTIFY\nService Unavailable.\nCause:this server checks no ports\n\n"
    play(a_scene(trigger=Waker()), says("a", asks(port=1203), a=unavailable), sees())


def test_when_too_many_ports_are_checked_at_once_then_one_more_is_refused() -> None:
    """A check that ends makes room for another."""
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
    play(scene, dial(succeeds=False, b=not_reached(4000, "198.51.100.1")))
    for n, made in enumerate(scene.dials[1:TESTS_MOST], 1):
        made.refuse()
        scene.reads(**{f"a{n}": not_reached(4000, f"203.0.113.{n + 1}")})
