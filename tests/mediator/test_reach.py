"""Reaching a callee: over a connection that it holds, else by a dial."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Final

import pytest

from broker.mediator.wakeup_dialer import DIALS_MOST
from tests.mediator.conftest import Logged
from tests.mediator.scene import (
    ACCEPTED,
    BUSY,
    CAN,
    CANT,
    DENIED,
    DONE,
    NOT_CONNECTED,
    NOT_FOUND,
    REQUESTED,
    STATUS,
    SUPERSEDED,
    Scene,
    query,
    register,
)
from tests.mediator.steps import (
    FORGET,
    Step,
    asks,
    calls,
    connect,
    dial,
    dialled,
    grants,
    holds,
    leaves,
    on_line,
    passes,
    play,
    registers,
    says,
)

HERE = ("Address:127.0.0.1", "Port:1203")


def away(**options: object) -> Scene:
    """Ib accepts Ia, and has left its address; Ia is connected."""
    scene = Scene(**options)
    scene.connect("a", "c")
    scene.on_line("b", "Accept:Create Ia,Ic", "Expires:600")
    scene.leaves("b")
    return scene


CALL: Final = says("a", query("Ia", "Ib"))
CALL_TOO: Final = says("c", query("Ic", "Ib"))
ACCEPT: Final = dial(succeeds=True)
#: Ib connects, and registers what is given; and answers.
COME: Final[list[Step]] = [connect("b"), says("b", register("Ib", *HERE), b=STATUS + DONE)]
GRANT: Final = grants()
#: Ib is asked for both of its callers, and accepts both.
COME_FOR_BOTH: Final[list[Step]] = [
    connect("b"),
    says("b", register("Ib", *HERE), b=STATUS + STATUS + DONE),
    grants(n="1"),
    grants(caller="c", n="2"),
]


#: A callee that holds no connection and is dialled (A24, fig. 19, S1902).
# fmt: off
DIALS: Final[dict[str, list[Step]]] = {
    # The address sent is the one that it registers then.
    "comes": [
        CALL, ACCEPT, connect("b"),
        says("b", register("Ib", "Address:127.0.0.1", "Port:9"), b=STATUS + DONE),
        grants(port=9),
    ],
    "comes before the dial is through": [CALL, *COME, ACCEPT, GRANT],
    # A connection that registers no address is not where it is reached.
    "comes without an address": [
        CALL, ACCEPT, connect("b"), says("b", register("Ib"), b=DONE), passes(5, a=NOT_CONNECTED),
    ],
    "comes and goes": [CALL, *COME, leaves("b", a=NOT_CONNECTED), ACCEPT],
    # Another terminal at the same place is not the callee (I4).
    "is not the one that comes": [CALL, ACCEPT, on_line("d"), passes(5, a=NOT_CONNECTED)],
    "refuses": [CALL, dial(succeeds=False, a=NOT_CONNECTED)],
    # A dial has three seconds.
    "does not answer": [CALL, passes(2.9), passes(0.1, a=NOT_CONNECTED)],
    # It has the rest of the five seconds.
    "accepts and does not come": [
        CALL, passes(2), ACCEPT, passes(2.9), passes(0.1, a=NOT_CONNECTED),
    ],
    # 5c, and it is asked nothing (I2, I5, A20).
    "withdraws the permit and comes": [
        CALL, ACCEPT, connect("b"), says("b", register("Ib", "Accept:Delete Ia"), b=DONE),
        says("b", register("Ib", *HERE), b=DONE, a=DENIED),
    ],
    "withdraws the permit as it comes": [
        CALL, ACCEPT, connect("b"),
        says("b", register("Ib", "Accept:Delete Ia", *HERE), b=DONE, a=DENIED),
    ],
    "withdraws the permit and refuses": [
        CALL, connect("b"), says("b", register("Ib", "Accept:Create"), b=DONE),
        dial(succeeds=False, a=DENIED),
    ],
    # Callers that ask while a dial is in progress share it.
    "comes for two": [CALL, CALL_TOO, dialled(1203), ACCEPT, *COME_FOR_BOTH],
    "refuses two": [CALL, CALL_TOO, dial(succeeds=False, a=NOT_CONNECTED, c=NOT_CONNECTED)],
    "is left by one of two": [
        CALL, CALL_TOO, leaves("a"), ACCEPT, *COME, grants(caller="c"),
    ],
    # It is dialled once in five seconds, by any number of callers; until then it is 5h.
    "is dialled again": [
        CALL, dial(succeeds=False, a=NOT_CONNECTED), passes(4.9),
        says("a", query("Ia", "Ib"), a=NOT_CONNECTED),
        says("c", query("Ic", "Ib"), c=NOT_CONNECTED), dialled(1203), passes(0.1), CALL,
        dialled(1203, 1203),
    ],
    # One that was notified within five seconds is not notified again: it may be about to come.
    "is about to come": [
        CALL, ACCEPT, passes(3), CALL_TOO, dialled(1203), passes(1), *COME_FOR_BOTH,
    ],
    # The pause after a dial is each terminal's own.
    "is one of two": [
        on_line("d", "Accept:Create Ia", port=4), leaves("d"),
        says("a", query("Ia", "Ib", "Transaction:1") + query("Ia", "Id", "Transaction:2")),
        dialled(1203, 4),
    ],
}
# fmt: on


class DialTests:
    """A callee that holds no connection is dialled at its registered address (A24, fig. 19)."""

    @pytest.mark.parametrize("callee", DIALS)
    def test_dialled(self, callee: str) -> None:
        """What a dialled callee does, and what its callers then read."""
        play(away(), *DIALS[callee])

    def test_nothing_is_believed(self) -> None:
        """What answers at its address reads only that a connection is requested (I26).

        Nothing that it says is read; and a dial that is not answered is over.
        """
        scene = away()
        play(scene, CALL)
        assert (scene.dials[0].host, scene.dials[0].port) == ("127.0.0.1", 1203)
        stranger = scene.dials[0].accept()
        stranger.feed((CAN + register("Ib", *HERE) + ACCEPTED).encode())
        assert (stranger.closed, stranger.text()) == (True, REQUESTED)
        play(scene, passes(5, a=NOT_CONNECTED), CALL, passes(3, a=NOT_CONNECTED))
        assert scene.dials[1].over

    def test_at_once(self) -> None:
        """Dials in progress at a time are limited (I15)."""
        scene = Scene()
        for n in range(DIALS_MOST + 1):
            name = f"b{n}"
            scene.new_says(name, register(f"Ib{n}", "Accept:Create Ia", *HERE), DONE)
            scene.leaves(name)
        scene.connect("a", "a2")
        for n in range(DIALS_MOST):
            who = "a" if n < 32 else "a2"
            scene.says(who, query("Ia", f"Ib{n}", f"Transaction:{n}"))
        over = "NOTIFY\nCallee not Connected.\nTransaction:x\nCode:480\n\n"
        scene.says("a", query("Ia", f"Ib{DIALS_MOST}", "Transaction:x"), a=over)
        assert len(scene.dials) == DIALS_MOST
        scene.dials[0].refuse()
        scene.heard("a")
        scene.says("a", query("Ia", f"Ib{DIALS_MOST}"))
        assert len(scene.dials) == DIALS_MOST + 1

    @pytest.mark.parametrize(
        ("source", "address", "networks", "there"),
        [
            ("10.0.0.1", "10.0.0.1", [], True),
            ("10.0.0.1", "10.0.0.2", [], False),
            ("127.0.0.1", "127.0.0.2", [], False),
            ("10.0.0.1", "10.0.0.2", ["10.0.0.0/24"], True),
            ("10.0.0.1", "10.0.1.2", ["10.0.0.0/24"], False),
            ("fd00::1", "fd00::1", [], True),
            ("::ffff:10.0.0.1", "10.0.0.1", [], True),
        ],
    )
    def test_where(self, source: str, address: str, networks: list[str], there: bool) -> None:
        """A terminal is dialled only where its registration came from, or the operator allows.

        Else the server could be used to look for open ports; a call is then 5h.
        """
        scene = Scene(allowed_networks=[ip_network(network) for network in networks])
        lines = ("Accept:Create Ia", f"Address:{address}")
        scene.new_says("b", register("Ib", *lines), DONE, host=source)
        scene.leaves("b")
        scene.new_says("a", query("Ia", "Ib"), "" if there else NOT_CONNECTED)
        assert [dial.host for dial in scene.dials] == ([address] if there else [])


def here(name: str, *lines: str, port: int = 1203, **reads: str) -> Step:
    """Ib registers its address over this connection."""
    return registers(name, "Address:127.0.0.1", f"Port:{port}", *lines, **reads)


def at(port: int | None) -> Step:
    """Ib's address has this port; or it has none."""
    expected = None if port is None else ("127.0.0.1", port)
    return holds(lambda scene: scene.address("Ib") == expected)


def closed(*numbers: int) -> Step:
    """These of Ib's connections were closed, and no other."""
    return holds(
        lambda scene: (
            [n for n in numbers if scene.clients[f"b{n}"].closed] == list(numbers)
            and sum(client.closed for client in scene.clients.values()) == len(numbers)
        )
    )


#: The first and the second of Ib's connections have registered an address, one after the other.
TWO: Final[list[Step]] = [
    connect("a", "b1", "b2", "b3"), here("b1", "Accept:Create Ia"), here("b2", b1=SUPERSEDED),
]  # fmt: skip
ASKED_OVER_B2: Final = asks(callee="b2")
#: Ib over several connections.
# fmt: off
SEVERAL: Final[dict[str, list[Step]]] = {
    # The active one is that which last registered an address; the other is told.
    "the last that registered": [*TWO, registers("b3", "Accept:Add Ic"), calls("a", "b2")],
    "again over the same": [on_line("b", port=1), on_line("b", port=2)],
    # The superseded one stays superseded, unless it registers an address.
    "does not fight back": [
        *TWO, registers("b1", "Accept:Add Ic"), ASKED_OVER_B2, says("b2", CANT, a=BUSY),
        here("b1", b2=SUPERSEDED),
    ],
    # When the active one closes, the newest that is still open is active, with its address.
    "returns to the newest": [
        connect("a", "b1", "b2", "b3"), here("b1", "Accept:Add Ia", "Expires:60", port=1),
        here("b2", "Expires:60", port=2, b1=SUPERSEDED),
        here("b3", "Expires:60", port=3, b2=SUPERSEDED),
        leaves("b3"), at(2), calls("a", "b2", port=2), leaves("b2"), FORGET,
        calls("a", "b1", port=1), leaves("b1"), passes(59), at(1), passes(1), at(None),
    ],
    # Newest means by registration of an address, not by when the connection was made or logged in.
    "returns to the one that registered last": [
        connect("a", "b1", "b2", "b3"), registers("b1"), here("b2", "Accept:Add Ia", port=2),
        here("b1", port=1, b2=SUPERSEDED), here("b3", port=3, b1=SUPERSEDED), leaves("b3"),
        calls("a", "b1", port=1),
    ],
    "a superseded one closes": [
        connect("a", "b1", "b2"), here("b1", "Accept:Create Ia", "Expires:5"),
        here("b2", "Expires:5", port=2, b1=SUPERSEDED), leaves("b1"), passes(4), at(2),
        ASKED_OVER_B2,
    ],
    # A connection that never registered an address is never the active one: it is dialled.
    "no other registered": [
        connect("a", "b2"), on_line("b", "Accept:Create Ia", "Expires:600"), registers("b2"),
        leaves("b"), CALL, dialled(1203),
    ],
    # A sixth connection closes the oldest that is not the active one (I15).
    "five": [
        connect("b1"), here("b1"),
        *(step for n in range(2, 7) for step in (connect(f"b{n}"), registers(f"b{n}"))), closed(2),
        connect("b7"), registers("b7"), closed(2, 3),
        holds(lambda scene: len(scene.context.connections.connections("Ib")) == 5),
        lambda scene: [scene.clients.pop(name) for name in ("b2", "b3")],
    ],
    # Other identifiers' connections don't count (I16).
    "five each": [
        *(step for who in "bc" for n in range(5)
          for step in (connect(f"{who}{n}"), registers(f"{who}{n}"))),
        closed(),
    ],
    # An expired address counts as none (5g), and is not dialled (I10).
    "its address has expired": [
        on_line("b", "Accept:Create Ia", "Expires:600"), leaves("b"), passes(600), connect("a"),
        says("a", query("Ia", "Ib"), a=NOT_FOUND), dialled(),
    ],
}
# fmt: on


class SeveralConnectionsTests:
    """One identifier over several connections."""

    @pytest.mark.parametrize("case", SEVERAL)
    def test_several(self, case: str) -> None:
        """Which of them is the active one, and what the others and the callers read."""
        play(Scene(), *SEVERAL[case])

    def test_logged(self, logged: Logged) -> None:
        """That another connection took over is worth a line in the log, with where it came from."""
        scene = Scene()
        for name, host in (("b1", "10.0.0.1"), ("b2", "10.0.0.2")):
            scene.connect(name, host=host)
        scene.registers("b1", "Address:10.0.0.9")
        scene.registers("b2", "Address:10.0.0.9", b1=SUPERSEDED)
        [line] = [text for text in logged.texts() if "reached" in text]
        assert "Ib is now reached over a connection from 10.0.0.2, previously from 10.0.0.1" in line

    def test_stop(self) -> None:
        """A mediator that stops closes every connection, and leaves no timer (I15)."""
        scene = Scene()
        play(scene, connect("a", "c"), on_line("b", "Accept:Create Ia"), asks())
        scene.mediator.stop()
        assert all(client.closed for client in scene.clients.values())
        scene.clients.clear()
        assert scene.clock.getDelayedCalls() == []
