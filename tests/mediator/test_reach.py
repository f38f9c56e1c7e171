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
    to_callee,
    to_caller,
)
from tests.mediator.steps import Step, connect, dial, leaves, on_line, passes, play, says

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
GRANT: Final = says("b", CAN, b=to_callee("Ia"), a=ACCEPTED + to_caller("Ib"))
#: Ib is asked for both of its callers, and accepts both.
COME_FOR_BOTH: Final[list[Step]] = [
    connect("b"),
    says("b", register("Ib", *HERE), b=STATUS + STATUS + DONE),
    says("b", CAN, b=to_callee("Ia", "1"), a=ACCEPTED + to_caller("Ib", n="1")),
    says("b", CAN, b=to_callee("Ic", "2"), c=ACCEPTED + to_caller("Ib", n="2")),
]


def dialled(count: int) -> Step:
    """There were that many dials."""

    def step(scene: Scene) -> None:
        assert len(scene.dials) == count

    return step


#: A callee that holds no connection and is dialled (A24, fig. 19, S1902).
# fmt: off
DIALS: Final[dict[str, list[Step]]] = {
    # The address sent is the one that it registers then.
    "comes": [
        CALL, ACCEPT, connect("b"),
        says("b", register("Ib", "Address:127.0.0.1", "Port:9"), b=STATUS + DONE),
        says("b", CAN, b=to_callee("Ia"), a=ACCEPTED + to_caller("Ib", port=9)),
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
    "comes for two": [CALL, CALL_TOO, dialled(1), ACCEPT, *COME_FOR_BOTH],
    "refuses two": [CALL, CALL_TOO, dial(succeeds=False, a=NOT_CONNECTED, c=NOT_CONNECTED)],
    "is left by one of two": [
        CALL, CALL_TOO, leaves("a"), ACCEPT, *COME,
        says("b", CAN, b=to_callee("Ic"), c=ACCEPTED + to_caller("Ib")),
    ],
    # It is dialled once in five seconds, by any number of callers; until then it is 5h.
    "is dialled again": [
        CALL, dial(succeeds=False, a=NOT_CONNECTED), passes(4.9),
        says("a", query("Ia", "Ib"), a=NOT_CONNECTED),
        says("c", query("Ic", "Ib"), c=NOT_CONNECTED), dialled(1), passes(0.1), CALL, dialled(2),
    ],
    # One that was notified within five seconds is not notified again: it may be about to come.
    "is about to come": [
        CALL, ACCEPT, passes(3), CALL_TOO, dialled(1), passes(1), *COME_FOR_BOTH,
    ],
}
# fmt: on


class DialTests:
    """A callee that holds no connection is dialled at its registered address (A24, fig. 19)."""

    @pytest.mark.parametrize("callee", DIALS)
    def test_dialled(self, callee: str) -> None:
        """What a dialled callee does, and what its callers then read."""
        play(away(), *DIALS[callee])

    def test_without_status(self) -> None:
        """So it is where no status is asked for."""
        scene = away(ask_status=False)
        play(scene, CALL, ACCEPT, connect("b"))
        told = ACCEPTED + to_caller("Ib")
        scene.says("b", register("Ib", *HERE), b=to_callee("Ia") + DONE, a=told)

    def test_nothing_is_believed(self) -> None:
        """What answers at its address reads only that a connection is requested (I26).

        Nothing that it says is read; and a dial that is not answered is over.
        """
        scene = away()
        play(scene, CALL)
        assert (scene.dials[0].host, scene.dials[0].port) == ("127.0.0.1", 1203)
        stranger = scene.dials[0].accept()
        assert stranger.closed
        for text in (CAN, register("Ib", *HERE), "NOTIFY\nRequest Accepted.\n\n"):
            stranger.feed(text.encode())
        assert stranger.text() == REQUESTED
        play(scene, passes(5, a=NOT_CONNECTED), CALL, passes(3, a=NOT_CONNECTED))
        assert scene.dials[1].over

    def test_of_several_terminals(self) -> None:
        """The pause after a dial is each terminal's own."""
        scene = away()
        scene.on_line("d", "Accept:Create Ia", port=4)
        scene.leaves("d")
        scene.says("a", query("Ia", "Ib", "Transaction:1") + query("Ia", "Id", "Transaction:2"))
        assert [dial.port for dial in scene.dials] == [1203, 4]

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
        ("source", "address", "networks", "dialled"),
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
    def test_where(self, source: str, address: str, networks: list[str], dialled: bool) -> None:
        """A terminal is dialled only where its registration came from, or the operator allows.

        Else the server could be used to look for open ports; a call is then 5h.
        """
        scene = Scene(allowed_networks=[ip_network(network) for network in networks])
        lines = ("Accept:Create Ia", f"Address:{address}")
        scene.new_says("b", register("Ib", *lines), DONE, host=source)
        scene.leaves("b")
        scene.new_says("a", query("Ia", "Ib"), "" if dialled else NOT_CONNECTED)
        assert [dial.host for dial in scene.dials] == ([address] if dialled else [])


class SeveralConnectionsTests:
    """One identifier over several connections."""

    def test_the_last_that_registered(self) -> None:
        """The active connection is the one that last registered an address; the other is told.

        That is logged, with both sources.
        """
        scene = Scene()
        scene.connect("a", "b1", "b2", "b3")
        scene.says("b1", register("Ib", "Accept:Create Ia", *HERE), b1=DONE)
        scene.says("b2", register("Ib", *HERE), b2=DONE, b1=SUPERSEDED)
        scene.says("b3", register("Ib", "Accept:Add Ic"), b3=DONE)
        scene.says("a", query("Ia", "Ib"), b2=STATUS)
        scene.says("b2", CAN, b2=to_callee("Ia"), a=ACCEPTED + to_caller("Ib"))

    def test_logged(self, logged: Logged) -> None:
        """That another connection took over is worth a line in the log, with where it came from."""
        scene = Scene()
        scene.new_says("b1", register("Ib", "Address:10.0.0.9"), DONE, host="10.0.0.1")
        scene.connect("b2", host="10.0.0.2")
        scene.says("b2", register("Ib", "Address:10.0.0.9"), b2=DONE, b1=SUPERSEDED)
        [line] = [text for text in logged.texts() if "reached" in text]
        assert "Ib is now reached over a connection from 10.0.0.2, previously from 10.0.0.1" in line

    def test_again_over_the_same(self) -> None:
        """A registration over the same connection supersedes none."""
        scene = Scene()
        scene.on_line("b", port=1)
        scene.on_line("b", port=2)

    def test_does_not_fight_back(self) -> None:
        """The superseded one stays superseded, unless it registers an address."""
        scene = Scene()
        scene.connect("a", "b1", "b2")
        scene.says("b1", register("Ib", "Accept:Create Ia", *HERE), b1=DONE)
        scene.says("b2", register("Ib", *HERE), b2=DONE, b1=SUPERSEDED)
        scene.says("b1", register("Ib", "Accept:Add Ic"), b1=DONE)
        scene.says("a", query("Ia", "Ib"), b2=STATUS)
        scene.says("b2", CANT, a=BUSY)
        scene.says("b1", register("Ib", *HERE), b1=DONE, b2=SUPERSEDED)

    def test_return(self) -> None:
        """When the active one closes, the newest that is still open is active, with its address."""
        scene = Scene()
        scene.connect("a", "b1", "b2", "b3")
        for n, reads in ((1, {}), (2, {"b1": SUPERSEDED}), (3, {"b2": SUPERSEDED})):
            lines = ("Accept:Add Ia", "Address:127.0.0.1", f"Port:{n}", "Expires:60")
            scene.says(f"b{n}", register("Ib", *lines), **{f"b{n}": DONE}, **reads)
        scene.leaves("b3")
        assert scene.address("Ib") == ("127.0.0.1", 2)
        scene.calls("a", "b2", port=2)
        scene.leaves("b2")
        scene.forget()
        scene.calls("a", "b1", port=1)
        scene.leaves("b1")
        scene.passes(59)
        assert scene.address("Ib") == ("127.0.0.1", 1)
        scene.passes(1)
        assert scene.address("Ib") is None

    def test_return_is_not_to_the_last_registered_first(self) -> None:
        """Newest means by registration, not by when the connection was made."""
        scene = Scene()
        scene.connect("a", "b1", "b2", "b3")
        scene.says("b2", register("Ib", "Accept:Add Ia", "Address:127.0.0.1", "Port:2"), b2=DONE)
        first = register("Ib", "Address:127.0.0.1", "Port:1")
        scene.says("b1", first, b1=DONE, b2=SUPERSEDED)
        third = register("Ib", "Address:127.0.0.1", "Port:3")
        scene.says("b3", third, b3=DONE, b1=SUPERSEDED)
        scene.leaves("b3")
        scene.calls("a", "b1", port=1)

    def test_superseded_one_closes(self) -> None:
        """A superseded connection that closes changes nothing."""
        scene = Scene()
        scene.connect("a", "b1", "b2")
        scene.says("b1", register("Ib", "Accept:Create Ia", *HERE, "Expires:5"), b1=DONE)
        second = register("Ib", "Address:127.0.0.1", "Port:2", "Expires:5")
        scene.says("b2", second, b2=DONE, b1=SUPERSEDED)
        scene.leaves("b1")
        scene.passes(4)
        assert scene.address("Ib") == ("127.0.0.1", 2)
        scene.says("a", query("Ia", "Ib"), b2=STATUS)

    def test_no_other_registered(self) -> None:
        """A connection that never registered an address is never the active one."""
        scene = Scene()
        scene.connect("b2")
        scene.on_line("b", "Accept:Create Ia", "Expires:600")
        scene.says("b2", register("Ib"), b2=DONE)
        scene.leaves("b")
        scene.new_says("a", query("Ia", "Ib"), "")
        assert len(scene.dials) == 1

    def test_five(self) -> None:
        """A sixth connection closes the oldest that is not the active one (I15)."""
        scene = Scene()
        for n in range(1, 6):
            scene.connect(f"b{n}")
            lines = HERE if n == 1 else ()
            scene.says(f"b{n}", register("Ib", *lines), **{f"b{n}": DONE})
        scene.connect("b6")
        scene.says("b6", register("Ib"), b6=DONE)
        assert [n for n in range(1, 7) if scene.clients[f"b{n}"].closed] == [2]
        assert len(scene.context.connections.connections("Ib")) == 5
        scene.connect("b7")
        scene.says("b7", register("Ib"), b7=DONE)
        assert [n for n in range(1, 8) if scene.clients[f"b{n}"].closed] == [2, 3]
        del scene.clients["b2"], scene.clients["b3"]

    def test_five_each(self) -> None:
        """Other identifiers' connections don't count (I16)."""
        scene = Scene()
        for n in range(1, 6):
            scene.new_says(f"b{n}", register("Ib"), DONE)
        for n in range(1, 6):
            scene.new_says(f"c{n}", register("Ic"), DONE)
        assert not any(client.closed for client in scene.clients.values())

    def test_stop(self) -> None:
        """A mediator that stops closes every connection, and leaves no timer (I15)."""
        scene = Scene()
        scene.connect("a", "c")
        scene.on_line("b", "Accept:Create Ia")
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        scene.mediator.stop()
        assert all(client.closed for client in scene.clients.values())
        scene.clients.clear()
        assert scene.clock.getDelayedCalls() == []


class AddressBecomesOldTests:
    """What a dial rests on (I10)."""

    def test_expired_is_not_dialled(self) -> None:
        """An expired address counts as none (5g), and is not dialled."""
        scene = away()
        scene.passes(600)
        scene.connect("d")
        scene.new_says("a3", query("Ia", "Ib"), NOT_FOUND)
        assert scene.dials == []
        for name in ("a", "c"):
            assert scene.clients.pop(name).closed
