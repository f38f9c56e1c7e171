"""A terminal whose own port is kept open to the outside (broker.terminal.ports.published_port)."""

from __future__ import annotations

from typing import Any, Final

import pytest
from twisted.internet.defer import Deferred

from broker.interfaces import PortNotOpened
from broker.messages.grammar import NOTIFY, QUERY, REGISTER
from broker.messages.message import Message
from broker.messages.statements import REGISTRATION_COMPLETED
from broker.terminal.terminal import Terminal
from tests.support.log import the_log
from tests.terminal.network import HOST, Listener, Network, Outcome, World
from tests.terminal.peers import Opener
from tests.terminal.scene import UdpScene
from tests.terminal.speakers import Echo, HalfCloseable, Handler, Maker

PORT: Final = 1203
OUTSIDE: Final = 4444


class House(World):
    """Ib, which has its port opened, in a network with its mediator."""

    def __init__(self, opener: Opener | None = None, **options: Any) -> None:
        super().__init__()
        self.opener = opener or Opener((HOST, OUTSIDE))
        self.handler = Handler(Echo)
        self.ib: Terminal = self.terminal(
            "Ib",
            PORT,
            handler=self.handler,
            accept=["Ia"],
            opener=self.opener,
            open_port=True,
            **options,
        )

    def registered(self) -> list[tuple[str | None, str | None]]:
        """The addresses and ports of the registrations so far, without those of lists."""
        said = [one for one in self.heard if one.verb == REGISTER and "Accept" not in one.fields]
        self.heard.clear()
        return [(one.get("Address"), one.get("Port")) for one in said]


@pytest.fixture
def house() -> House:
    """Ib, whose port is open."""
    return House()


class RegisteredTests:
    """Callers are given where it is reached from outside (D9, A22)."""

    def test_the_place_outside(self, house: House) -> None:
        """It logs in first, then registers that place in the stead of its own."""
        assert house.registered() == [(None, None), (HOST, str(OUTSIDE))]
        house.listen(OUTSIDE, house.factory_at(PORT))
        outcome = Outcome(house.terminal("Ia").call("Ib", Maker(HalfCloseable)))
        house.run()
        assert outcome.value is not None
        assert house.dialled[-1][1] == OUTSIDE

    def test_not_before_it_is_known(self) -> None:
        """While it is being opened it registers nothing that may be wrong."""
        house = House(Opener(None))
        house.advance(5)
        assert house.registered() == [(None, None)]
        house.opener.pending[0].callback((HOST, OUTSIDE))
        house.run()
        assert house.registered() == [(HOST, str(OUTSIDE))]

    def test_not_to_be_had(self) -> None:
        """It says why, once, and goes on as without."""
        with the_log() as lines:
            house = House(Opener("no router answers"))
            assert house.registered() == [(None, None), (HOST, str(PORT))]
            house.restart_mediator()
            house.advance(2)
        assert house.registered() == [(None, None), (HOST, str(PORT))]
        told = [line for line in lines if "can't be reached from outside" in line]
        assert len(told) == 1
        assert "Port 1203 can't be reached from outside: no router answers" in told[0]
        assert house.opener.opened == []

    def test_a_registration_that_is_refused(self) -> None:
        """It is logged, and the terminal stays."""
        with the_log() as lines:
            house = House(Opener(("224.0.0.1", OUTSIDE)))
        assert any("refused the registration of Ib" in line for line in lines)
        assert house.has_line("Ib")

    def test_nobody_to_open_it(self) -> None:
        """It is a mistake of the application's."""
        with pytest.raises(ValueError, match="open_port needs an opener"):
            World().terminal("Ib", PORT, open_port=True)

    def test_only_with_a_listener(self) -> None:
        """A terminal that listens nowhere has nothing opened."""
        opener = Opener()
        World().terminal("Ib", opener=opener, open_port=True)
        assert opener.asked == []


class RedoneTests:
    """It is opened again by each line, and where it was lost; closed at the end (D9)."""

    def test_another_line(self, house: House) -> None:
        """The one of before is given back once there is another."""
        house.registered()
        house.opener.place = (HOST, 5555)
        house.restart_mediator()
        house.advance(2)
        assert house.registered() == [(None, None), (HOST, "5555")]
        assert (len(house.opener.asked), house.opener.opened) == (2, [PORT])
        assert house.opener.asked[0] is not house.opener.asked[1]

    def test_another_line_while_it_is_opened(self) -> None:
        """What was asked for by the old one is given up."""
        house = House(Opener(None))
        house.opener.place = (HOST, 5555)
        house.restart_mediator()
        house.advance(2)
        assert house.opener.pending[0].called
        assert house.opener.opened == [PORT]
        assert house.registered()[-1] == (HOST, "5555")

    def test_lost(self, house: House) -> None:
        """What is no longer true is withdrawn, and the new place registered."""
        house.registered()
        house.opener.place = (HOST, 5555)
        house.opener.lost[0]("the router has restarted")
        house.run()
        withdrawn, fresh = [one for one in house.heard if one.verb == REGISTER]
        assert withdrawn.get("Expires") == "0"
        assert (fresh.get("Address"), fresh.get("Port")) == (HOST, "5555")
        assert house.opener.opened == [PORT]

    def test_lost_for_good(self, house: House) -> None:
        """As without, from then on."""
        house.registered()
        house.opener.place = "the router is gone"
        house.opener.lost[0]("the router has restarted")
        house.run()
        assert house.registered() == [(None, None), (HOST, str(PORT))]
        assert house.opener.opened == []

    def test_lost_without_a_line(self, house: House) -> None:
        """The next line sees to it."""
        house.mediator_goes()
        house.run()
        house.opener.lost[0]("the router has restarted")
        house.run()
        assert len(house.opener.asked) == 1
        house.mediator_comes()
        house.advance(2)
        assert len(house.opener.asked) == 2

    @pytest.mark.parametrize("known", [False, True])
    def test_stopped(self, known: bool) -> None:
        """It is closed with the terminal, or given up, and not asked for again."""
        house = House(Opener((HOST, OUTSIDE) if known else None))
        stopped = Outcome(house.ib.stopService())
        house.run()
        assert stopped.done
        assert house.opener.opened == []
        assert known or house.opener.pending[0].called
        for lost in house.opener.lost:
            lost("the router has restarted")
        assert len(house.opener.asked) == 1

    def test_lost_while_it_stops(self, house: House) -> None:
        """What is given back is not opened again, though the line is still there."""
        assert house.ib._registration._published is not None
        stopped = Outcome(Deferred.fromCoroutine(house.ib._registration._published.stop()))
        house.opener.lost[0]("the router has restarted")
        assert stopped.done
        assert (len(house.opener.asked), house.opener.opened) == (1, [])


class ByUdpTests:
    """With registration by UDP (D1)."""

    def scene(self, opener: Opener) -> UdpScene:
        """Ib has logged in and has a key."""
        scene = UdpScene(listen=Listener(Network(), PORT), opener=opener, open_port=True)
        said = scene.take()
        assert (said.get("UDP"), said.get("Port"), said.get("Address")) == ("Yes", "1203", None)
        return scene

    def test_both(self) -> None:
        """Until then it is reached along its mapping; then the place is registered too."""
        opener = Opener(None)
        scene = self.scene(opener)
        opener.pending[0].callback((HOST, OUTSIDE))
        said = scene.take(Token="")
        assert (said.get("UDP"), said.get("Port"), said.get("Address")) == ("Yes", "4444", HOST)
        assert scene.port.listening

    def test_not_to_be_had(self) -> None:
        """Then nothing more need be registered."""
        scene = self.scene(Opener("no router answers"))
        assert [one for one in scene.line.received() if one.verb in (REGISTER, QUERY)] == []

    def test_not_quiet_meanwhile(self) -> None:
        """The line is kept until it is known."""
        opener = Opener(None)
        scene = self.scene(opener)
        scene.advance(60)
        assert not scene.line.closed
        opener.pending[0].errback(PortNotOpened("no router answers"))
        scene.advance(60)
        assert scene.line.closed

    def test_lost(self) -> None:
        """A withdrawal voids the keys, so that another is asked for."""
        opener = Opener((HOST, OUTSIDE))
        scene = self.scene(opener)
        scene.take(Token="")
        opener.place = "the router is gone"
        opener.lost[0]("the router has restarted")
        withdrawn = scene.said()
        assert withdrawn.get("Expires") == "0"
        answer = Message(NOTIFY, REGISTRATION_COMPLETED)
        answer.fields["Transaction"] = withdrawn.fields["Transaction"]
        scene.line.send(answer)
        said = scene.take(Token="")
        assert (said.get("UDP"), said.get("Address")) == ("Yes", None)
