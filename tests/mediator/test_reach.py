"""Getting to a callee: over a connection it holds, else by waking or dialling it."""

from __future__ import annotations

from ipaddress import ip_network

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

HERE = ("Address:127.0.0.1", "Port:1203")


def away(**options: object) -> Scene:
    """Ib accepts Ia, and has left its address; Ia is connected."""
    scene = Scene(**options)
    scene.connect("a", "c")
    scene.on_line("b", "Accept:Create Ia,Ic", "Expires:600")
    scene.leaves("b")
    return scene


class DialTests:
    """A callee that holds no connection is dialled at its registered address (A24, fig. 19)."""

    def test_whole_way(self) -> None:
        """It is told only that a connection is asked for; it comes, and the call goes on (I26).

        The address told is the one that it registers then.
        """
        scene = away()
        scene.says("a", query("Ia", "Ib"))
        [dial] = scene.dials
        assert (dial.host, dial.port) == ("127.0.0.1", 1203)
        callee = dial.accept()
        assert callee.text() == REQUESTED
        assert callee.closed
        scene.connect("b")
        moved = register("Ib", "Address:127.0.0.1", "Port:9")
        scene.says("b", moved, b=STATUS + DONE)
        scene.says("b", CAN, b=to_callee("Ia"), a=ACCEPTED + to_caller("Ib", port=9))

    def test_without_status(self) -> None:
        """The same where no status is asked."""
        scene = away(ask_status=False)
        scene.says("a", query("Ia", "Ib"))
        scene.dials[0].accept()
        scene.connect("b")
        told = ACCEPTED + to_caller("Ib")
        scene.says("b", register("Ib", *HERE), b=to_callee("Ia") + DONE, a=told)

    def test_nothing_is_believed(self) -> None:
        """Whatever answers at that address is not listened to (I26)."""
        scene = away()
        scene.says("a", query("Ia", "Ib"))
        stranger = scene.dials[0].accept()
        for text in (CAN, register("Ib", *HERE), "NOTIFY\nRequest Accepted.\n\n"):
            stranger.feed(text.encode())
        assert stranger.text() == REQUESTED
        scene.reads()
        scene.passes(5, a=NOT_CONNECTED)

    def test_comes_before_the_dial_is_through(self) -> None:
        """A callee that comes by itself while it is dialled is taken."""
        scene = away()
        scene.says("a", query("Ia", "Ib"))
        scene.connect("b")
        scene.says("b", register("Ib", *HERE), b=STATUS + DONE)
        assert scene.dials[0].accept().text() == REQUESTED
        scene.says("b", CAN, b=to_callee("Ia"), a=ACCEPTED + to_caller("Ib"))

    def test_comes_without_an_address(self) -> None:
        """A connection of the callee that registers no address is not where it is reached."""
        scene = away()
        scene.says("a", query("Ia", "Ib"))
        scene.dials[0].accept()
        scene.new_says("b", register("Ib"), DONE)
        scene.passes(5, a=NOT_CONNECTED)

    def test_comes_and_goes(self) -> None:
        """A callee that comes and goes again while it is dialled: 5h."""
        scene = away()
        scene.says("a", query("Ia", "Ib"))
        scene.connect("b")
        scene.says("b", register("Ib", *HERE), b=STATUS + DONE)
        scene.leaves("b", a=NOT_CONNECTED)
        scene.dials[0].accept()

    def test_someone_else_comes(self) -> None:
        """Another terminal that registers at the same place is not the callee (I4)."""
        scene = away()
        scene.says("a", query("Ia", "Ib"))
        scene.dials[0].accept()
        scene.on_line("d")
        scene.passes(5, a=NOT_CONNECTED)

    def test_refused(self) -> None:
        """A dial that is refused is 5h at once (S1902)."""
        scene = away()
        scene.says("a", query("Ia", "Ib"))
        scene.dials[0].refuse()
        scene.reads(a=NOT_CONNECTED)

    def test_no_answer(self) -> None:
        """A dial has three seconds (S1902)."""
        scene = away()
        scene.says("a", query("Ia", "Ib"))
        scene.passes(2.9)
        scene.passes(0.1, a=NOT_CONNECTED)
        assert scene.dials[0].over

    def test_told_and_does_not_come(self) -> None:
        """A callee that was told has the rest of the five seconds to come."""
        scene = away()
        scene.says("a", query("Ia", "Ib"))
        scene.passes(2)
        scene.dials[0].accept()
        scene.passes(2.9)
        scene.passes(0.1, a=NOT_CONNECTED)

    def test_withdrawn_meanwhile(self) -> None:
        """A permit withdrawn while the callee is dialled: 5c, and it is asked nothing (I2, I5)."""
        scene = away()
        scene.says("a", query("Ia", "Ib"))
        scene.dials[0].accept()
        scene.connect("b")
        scene.says("b", register("Ib", "Accept:Delete Ia"), b=DONE)
        scene.says("b", register("Ib", *HERE), b=DONE, a=DENIED)

    def test_withdrawn_while_it_comes(self) -> None:
        """Withdrawn in the very message with which it comes (I2, I5)."""
        scene = away(ask_status=False)
        scene.says("a", query("Ia", "Ib"))
        scene.dials[0].accept()
        scene.connect("b")
        scene.says("b", register("Ib", "Accept:Delete Ia", *HERE), b=DONE, a=DENIED)

    def test_withdrawn_and_refused(self) -> None:
        """And 5c, too, where it can't be reached (A20)."""
        scene = away()
        scene.says("a", query("Ia", "Ib"))
        scene.new_says("b", register("Ib", "Accept:Create"), DONE)
        scene.dials[0].refuse()
        scene.reads(a=DENIED)

    def test_two_callers_one_dial(self) -> None:
        """Callers who ask while a dial is under way share it."""
        scene = away()
        scene.says("a", query("Ia", "Ib"))
        scene.says("c", query("Ic", "Ib"))
        assert len(scene.dials) == 1
        scene.dials[0].accept()
        scene.connect("b")
        scene.says("b", register("Ib", *HERE), b=STATUS + STATUS + DONE)
        scene.says("b", CAN, b=to_callee("Ia", "1"), a=ACCEPTED + to_caller("Ib", n="1"))
        scene.says("b", CAN, b=to_callee("Ic", "2"), c=ACCEPTED + to_caller("Ib", n="2"))

    def test_two_callers_refused(self) -> None:
        """And its end."""
        scene = away()
        scene.says("a", query("Ia", "Ib"))
        scene.says("c", query("Ic", "Ib"))
        scene.dials[0].refuse()
        scene.reads(a=NOT_CONNECTED, c=NOT_CONNECTED)

    def test_one_of_two_callers_goes(self) -> None:
        """One of them going leaves the dial to the other."""
        scene = away()
        scene.says("a", query("Ia", "Ib"))
        scene.says("c", query("Ic", "Ib"))
        scene.leaves("a")
        scene.dials[0].accept()
        scene.connect("b")
        scene.says("b", register("Ib", *HERE), b=STATUS + DONE)
        scene.says("b", CAN, b=to_callee("Ic"), c=ACCEPTED + to_caller("Ib"))

    def test_not_often(self) -> None:
        """One terminal is dialled once in five seconds, however many ask; till then it is 5h."""
        scene = away()
        scene.says("a", query("Ia", "Ib"))
        scene.dials[0].refuse()
        scene.reads(a=NOT_CONNECTED)
        scene.passes(4.9)
        scene.says("a", query("Ia", "Ib"), a=NOT_CONNECTED)
        scene.says("c", query("Ic", "Ib"), c=NOT_CONNECTED)
        assert len(scene.dials) == 1
        scene.passes(0.1)
        scene.says("a", query("Ia", "Ib"))
        assert len(scene.dials) == 2

    def test_told_just_now(self) -> None:
        """Who was told within the last five seconds is not told again: it may be on its way."""
        scene = away()
        scene.says("a", query("Ia", "Ib"))
        scene.dials[0].accept()
        scene.passes(3)
        scene.says("c", query("Ic", "Ib"))
        assert len(scene.dials) == 1
        scene.passes(1)
        scene.connect("b")
        scene.says("b", register("Ib", *HERE), b=STATUS + STATUS + DONE)
        scene.says("b", CAN, b=to_callee("Ia", "1"), a=ACCEPTED + to_caller("Ib", n="1"))
        scene.says("b", CAN, b=to_callee("Ic", "2"), c=ACCEPTED + to_caller("Ib", n="2"))

    def test_of_several_terminals(self) -> None:
        """The pause after a dial is each terminal's own."""
        scene = away()
        scene.on_line("d", "Accept:Create Ia", port=4)
        scene.leaves("d")
        scene.says("a", query("Ia", "Ib", "Transaction:1") + query("Ia", "Id", "Transaction:2"))
        assert [dial.port for dial in scene.dials] == [1203, 4]

    def test_at_once(self) -> None:
        """So many dials may be under way at a time and no more (I15)."""
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
        """Nobody is dialled but where its registration came from, or where the operator allows.

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
        """It is reached over the connection that last registered an address; the other is told.

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
        """Who registers anew over the same connection supersedes nobody."""
        scene = Scene()
        scene.on_line("b", port=1)
        scene.on_line("b", port=2)

    def test_does_not_fight_back(self) -> None:
        """The superseded one stays superseded, whatever it does but register an address."""
        scene = Scene()
        scene.connect("a", "b1", "b2")
        scene.says("b1", register("Ib", "Accept:Create Ia", *HERE), b1=DONE)
        scene.says("b2", register("Ib", *HERE), b2=DONE, b1=SUPERSEDED)
        scene.says("b1", register("Ib", "Accept:Add Ic"), b1=DONE)
        scene.says("a", query("Ia", "Ib"), b2=STATUS)
        scene.says("b2", CANT, a=BUSY)
        scene.says("b1", register("Ib", *HERE), b1=DONE, b2=SUPERSEDED)

    def test_return(self) -> None:
        """When the reached one closes, reach returns to the newest still open, with its address."""
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
        """A connection that never registered an address is never the reached one."""
        scene = Scene()
        scene.connect("b2")
        scene.on_line("b", "Accept:Create Ia", "Expires:600")
        scene.says("b2", register("Ib"), b2=DONE)
        scene.leaves("b")
        scene.new_says("a", query("Ia", "Ib"), "")
        assert len(scene.dials) == 1

    def test_five(self) -> None:
        """A sixth connection closes the oldest that is not the reached one (I15)."""
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
        """A mediator that stops closes everybody, and leaves no timer (I15)."""
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
        """An expired address is told as none (5g), and nobody is dialled there."""
        scene = away()
        scene.passes(600)
        scene.connect("d")
        scene.new_says("a3", query("Ia", "Ib"), NOT_FOUND)
        assert scene.dials == []
        for name in ("a", "c"):
            assert scene.clients.pop(name).closed
