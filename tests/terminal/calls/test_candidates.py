"""Calls between two terminals as they are, along all the ways that are left open."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import CannotListenError

from broker.messages.grammar import QUERY
from broker.terminal.calls.callee_port import CalleePort
from broker.terminal.calls.one_call import place_one_call
from broker.terminal.calls.place_call import DIAL_TIMEOUT
from broker.terminal.calls.wait_for_callee import OPEN_TIMEOUT, RETRY_AFTER, WAIT_TIMEOUT
from broker.terminal.candidates import BACK, DIRECT, HOLE_PUNCH, LOCAL, Candidate, FailedCandidate
from broker.terminal.channel.active_calls import ENDED_BEFORE
from broker.terminal.errors import CallDenied, CallFailed
from broker.terminal.outgoing.connector import SLOWER
from broker.terminal.registration.client import MediatorClient, dial
from tests.support.clock import advance, result_of, settle
from tests.terminal.meeting import NOWHERE, TAKES, WAITS, Simultaneous, stand_in
from tests.terminal.network import HOST, MEDIATOR_PORT, Listener, Outcome, World
from tests.terminal.peers import Opener
from tests.terminal.scene import mediator_at
from tests.terminal.speakers import Echo, HalfCloseable, Handler, Maker


@pytest.fixture(autouse=True)
def simultaneous(monkeypatch: pytest.MonkeyPatch) -> Simultaneous:
    """Both sides' sockets."""
    return stand_in(monkeypatch)


class Both:
    """Ia and Ib as they are, with all ways between them that a test leaves open.

    :ivar outcome: what becomes of Ia's call to Ib
    """

    def __init__(
        self, sockets: Simultaneous, caller: dict[str, Any] | None = None, **callee: Any
    ) -> None:
        """
        :param caller: settings of Ia's
        """
        self.world = sockets.world = World()
        self.sockets = sockets
        self.handler = Handler(Echo)
        self.ib = self.world.terminal("Ib", TAKES, handler=self.handler, accept=["Ia"], **callee)
        self.ia = self.world.terminal("Ia", WAITS, **(caller or {}))
        self.maker = Maker(HalfCloseable)
        self.world.run()
        self.world.dialled.clear()

    @classmethod
    def hidden(cls, sockets: Simultaneous) -> Both:
        """Ib is not where it is registered, nor where it listens."""
        both = cls(sockets, port=NOWHERE)
        both.world.leave(TAKES)
        return both

    def call(self) -> Outcome:
        """Ia calls."""
        self.outcome = Outcome(self.ia.call("Ib", self.maker))
        self.world.run()
        return self.outcome

    def withdraw(self) -> None:
        """Ib permits Ia no longer."""
        Outcome(self.ib.edit(["Delete Ia"]))
        self.world.run()

    def stands(self, way: Candidate) -> tuple[Any, Any]:
        """The one call stands, along a way: both sides' protocols.

        Ib was asked for once, one session is spent, once; neither side waits, dials or is about to.
        """
        assert self.outcome.error is None
        (mine,) = self.maker.made
        assert self.outcome.value is mine
        ((caller, session, served),) = self.handler.calls
        assert (caller, session) == ("Ia", mine.transport.session)
        assert mine.transport.candidate == way
        mine.transport.write(b"hello")
        self.world.run()
        assert mine.received == b"hello"
        heard = self.world.heard
        asked = [one for one in heard if one.verb == QUERY and "Callee" in one.fields]
        assert len(asked) == 1
        assert [one.get("Session") for one in heard if one.statement == "Begin."] == [session]
        assert (len(self.ia.calls), len(self.ib.calls)) == (1, 1)
        self._nothing_else()
        return mine, served

    def said(self) -> tuple[dict[str, str], dict[str, str]]:
        """The fields with which Ib has registered last, and with which Ia has asked for it."""
        heard = self.world.heard
        registered = [one for one in heard if one.get("Identifier") == "Ib" and one.get("Address")]
        asked = [one for one in heard if one.verb == QUERY and "Callee" in one.fields]
        return registered[-1].fields, asked[-1].fields

    def ends(self) -> None:
        """The call ends, and nothing is left of it."""
        self.maker.made[0].transport.loseConnection()
        self.world.run()
        ends = [one.get("End") for one in self.world.heard if "End" in one.fields]
        assert ends == ["Completed", "Completed"]
        assert (len(self.ia.calls), len(self.ib.calls)) == (0, 0)
        assert len(self.world.mediator.mediator.context.sessions) == 0
        self._nothing_else()
        assert self.maker.started == 0
        assert {pair.b.host.port for pair in self.world.open()} == {MEDIATOR_PORT}  # type: ignore[union-attr]

    def _nothing_else(self) -> None:
        self.world.silent.clear()
        self.world.run()
        assert self.sockets.waiting == []
        for terminal in (self.ia, self.ib):
            listener = terminal._listener
            assert not terminal._connect_back._waits
            assert not terminal._dial_back._timers
            assert not terminal._dial_back._dialling
            assert not listener._unproven
            assert not listener._proving
            assert not len(listener._held)
            assert len(terminal._pending) == 0
            assert terminal._placing == set()
        assert len([dial for dial in self.world.clock.dials if not dial.over]) == 0

    @property
    def ports(self) -> list[int]:
        """Which ports were dialled for the call, in order."""
        return [port for _, port in self.world.dialled]


class WholeWayTests:
    """Two terminals and a mediator: one call, along whichever way leads there (I7)."""

    def test_direct(self, simultaneous: Simultaneous) -> None:
        """Where the callee is registered: neither dials back, and nothing else is begun."""
        both = Both(simultaneous)
        both.call()
        mine, served = both.stands(Candidate(DIRECT, HOST, TAKES))
        assert served.transport.candidate is None
        assert mine.transport.failed_candidates == (
            FailedCandidate(Candidate(HOLE_PUNCH, HOST, 50000), SLOWER),
            FailedCandidate(Candidate(BACK, HOST, WAITS), SLOWER),
        )
        both.ends()
        both.world.advance(30)
        assert both.ports == [TAKES]
        assert simultaneous.begun == []

    def test_local(self, simultaneous: Simultaneous) -> None:
        """Where it listens in the network of both."""
        both = Both(simultaneous, port=NOWHERE)
        both.call()
        mine, _ = both.stands(Candidate(LOCAL, HOST, TAKES))
        assert {tried.candidate.method for tried in mine.transport.failed_candidates} == {
            DIRECT,
            HOLE_PUNCH,
            BACK,
        }
        both.ends()
        both.world.advance(30)
        assert both.ports == [TAKES]

    def test_both_dial(self, simultaneous: Simultaneous) -> None:
        """Both come from their lines' ports, the caller a quarter of a second sooner or later."""
        both = Both.hidden(simultaneous)
        simultaneous.meets = True
        both.call()
        both.world.advance(0.25)
        _, served = both.stands(Candidate(HOLE_PUNCH, HOST, 50000))
        assert served.transport.candidate == Candidate(HOLE_PUNCH, HOST, 50000)
        both.world.listen(TAKES, both.ib._listener.factory())
        both.ends()
        both.world.advance(30)
        assert both.ports == [TAKES, NOWHERE]

    def test_back(self, simultaneous: Simultaneous) -> None:
        """The callee comes, half a second after it was told, where nothing else leads to it."""
        both = Both.hidden(simultaneous)
        both.call()
        both.world.advance(0.49)
        assert not both.outcome.done
        both.world.advance(0.01)
        mine, served = both.stands(Candidate(BACK, HOST, WAITS))
        assert served.transport.candidate == Candidate(BACK, HOST, WAITS)
        refused = "Connection was refused by other side"
        assert mine.transport.failed_candidates == (
            FailedCandidate(Candidate(LOCAL, HOST, TAKES), refused),
            FailedCandidate(Candidate(DIRECT, HOST, NOWHERE), refused),
            FailedCandidate(Candidate(HOLE_PUNCH, HOST, 50000), SLOWER),
        )
        both.world.listen(TAKES, both.ib._listener.factory())
        both.ends()
        both.world.advance(30)
        assert both.ports == [TAKES, NOWHERE, WAITS]

    def test_back_beside_silence(self, simultaneous: Simultaneous) -> None:
        """A way on which nothing ever comes back costs half a second."""
        both = Both(simultaneous)
        both.world.silent.add(TAKES)
        both.call()
        both.world.advance(0.5)
        both.stands(Candidate(BACK, HOST, WAITS))
        both.ends()

    @pytest.mark.parametrize("seconds", [0.0, 0.1, 0.49, 0.5, 0.51])
    def test_one_channel(self, seconds: float, simultaneous: Simultaneous) -> None:
        """Whichever way is the faster by a little, there is one channel, and one session."""
        both = Both(simultaneous)
        both.world.silent.add(TAKES)
        both.call()
        advance(both.world.clock, seconds)
        both.world.silent.clear()
        both.world.advance(0.6)
        direct, back = Candidate(DIRECT, HOST, TAKES), Candidate(BACK, HOST, WAITS)
        assert both.outcome.value.transport.candidate in {direct, back}
        both.stands(both.outcome.value.transport.candidate)
        both.ends()

    @pytest.mark.parametrize("first", [TAKES, WAITS])
    def test_both_answered(self, first: int, simultaneous: Simultaneous) -> None:
        """Two REQUESTs of one session are both answered: one channel opens, the other ends."""
        both = Both(simultaneous)
        world = both.world
        world.silent.add(TAKES)
        both.call()
        world.silent.add(WAITS)
        world.advance(0.5)
        world.silent.clear()
        (direct,), (back,) = world.between(TAKES), world.between(WAITS)
        for which, pair in ((0, direct), (0, back), (1, back)):  # two REQUESTs, what one waits for
            ends = (pair.a, pair.b) if which == 0 else (pair.b, pair.a)
            assert pair._move(which, *ends)
            settle(world.clock)
        assert direct.b.unread
        assert back.a.unread
        last = WAITS if first == TAKES else TAKES
        world.silent.add(last)
        world.run()
        kind = DIRECT if first == TAKES else BACK
        both.stands(Candidate(kind, HOST, first))
        both.ends()

    def test_none(self, simultaneous: Simultaneous) -> None:
        """It is said of each why not, once the last is over."""
        both = Both.hidden(simultaneous)
        both.world.leave(WAITS)
        both.call()
        both.world.advance(WAIT_TIMEOUT - 0.1)
        assert not both.outcome.done
        both.world.advance(0.2)
        assert isinstance(both.outcome.error, CallFailed)
        kinds = [tried.candidate.method for tried in both.outcome.error.failed_candidates]
        assert kinds == [LOCAL, DIRECT, HOLE_PUNCH, BACK]
        assert str(both.outcome.error).startswith(
            "Ib could not be reached: in the local network at"
        )

    def test_denied(self, simultaneous: Simultaneous) -> None:
        """A callee that has no application says no for all its ways."""
        both = Both(simultaneous)
        both.ib._listener.handler = None
        both.call()
        assert type(both.outcome.error) is CallDenied
        both.world.advance(30)
        assert both.maker.made == []
        assert len(both.ib.calls) == 0

    @pytest.mark.parametrize("how", ["given up", "stopped", "withdrawn"])
    def test_ended(self, how: str, simultaneous: Simultaneous) -> None:
        """The caller gives up, or stops, or its permit is withdrawn (I2): no callee is waited for,
        and none dials.
        """
        both = Both.hidden(simultaneous)
        both.call()
        both.world.advance(0.3)
        if how == "given up":
            both.outcome.deferred.cancel()
            assert isinstance(both.outcome.error, CancelledError)
        elif how == "stopped":
            stopped = Outcome(both.ia.stopService())
            both.world.run()
            assert stopped.done
            assert both.outcome.error is not None
        else:
            both.withdraw()
            assert str(both.outcome.error) == ENDED_BEFORE
            assert simultaneous.waiting == []
        assert not both.ia._connect_back._waits
        both.world.advance(30)
        assert (both.handler.calls, both.maker.made) == ([], [])
        assert both.world.between(WAITS) == []
        assert how != "withdrawn" or WAITS not in both.ports

    def test_withdrawn_while_it_is_waited_for(self, simultaneous: Simultaneous) -> None:
        """Nor is it another reason where nothing else is left to be tried."""
        both = Both.hidden(simultaneous)
        both.world.leave(WAITS)
        both.call()
        both.world.advance(DIAL_TIMEOUT + 1)
        both.withdraw()
        assert isinstance(both.outcome.error, CallFailed)
        assert str(both.outcome.error) == ENDED_BEFORE
        kinds = [tried.candidate.method for tried in both.outcome.error.failed_candidates]
        assert kinds == [LOCAL, DIRECT, HOLE_PUNCH, BACK]

    def test_what_is_offered(self, simultaneous: Simultaneous) -> None:
        """Each says where it listens itself, that it may be seen, and where it can be come to."""
        both = Both(simultaneous, port=NOWHERE)
        both.call()
        registered, asked = both.said()
        assert (registered["Local"], registered["Seen"]) == (f"{HOST} {TAKES}", "Yes")
        assert (asked["Seen"], asked["Back"]) == ("Yes", str(WAITS))

    def test_nothing_else_than_it_was_told(self, simultaneous: Simultaneous) -> None:
        """A terminal whose operator has named its address tells no other (I1)."""
        both = Both(simultaneous, {"address": HOST}, address=HOST)
        both.call()
        registered, asked = both.said()
        assert {"Local", "Seen"}.isdisjoint(registered)
        assert "Seen" not in asked
        both.stands(Candidate(DIRECT, HOST, TAKES))

    def test_within_this_machine(
        self, simultaneous: Simultaneous, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where no router can be in between, none of it is said."""
        monkeypatch.setattr(MediatorClient, "share_port", lambda line: None)
        both = Both(simultaneous)
        both.call()
        registered, asked = both.said()
        assert {"Local", "Seen"}.isdisjoint(registered)
        assert {"Seen", "Back"}.isdisjoint(asked)
        mine, _ = both.stands(Candidate(DIRECT, HOST, TAKES))
        assert mine.transport.failed_candidates == ()

    def test_one_after_the_other(self, simultaneous: Simultaneous) -> None:
        """A call that has found its way leaves the next one as free as it was."""
        both = Both.hidden(simultaneous)
        for _ in range(2):
            outcome = both.call()
            both.world.advance(0.5)
            assert outcome.value.transport.candidate == Candidate(BACK, HOST, WAITS)
            outcome.value.transport.loseConnection()
            both.world.run()
        assert len(both.handler.calls) == 2


class NoWayInTests:
    """A caller that can't be come to: its call goes on without, and it is told why (C12, D9)."""

    SEEN: ClassVar = "the mediator sees us at 127.0.0.1, and callees connect to nowhere else"

    def both(self, sockets: Simultaneous, **caller: Any) -> Both:
        """Ib is where no other way leads, and does not dial."""
        return Both(sockets, caller, address=HOST, port=NOWHERE)

    def fails(self, both: Both, why: str, place: str = HOST) -> None:
        """What Ia waits at can't be had, for this reason, which it is told at once."""
        now = both.world.clock.seconds()
        both.call()
        self.named(both, why, place)
        assert both.world.clock.seconds() == now

    def named(self, both: Both, why: str, place: str = HOST) -> None:
        """No port is named to Ib; the one error names the cause, and the way that was gone."""
        assert both.said()[1].get("Back") is None
        assert str(both.outcome.error) == (
            f"Ib could not be reached: by connecting back to us at {place}:{WAITS}: {why};"
            " directly at 127.0.0.1:4999: Connection was refused by other side"
        )

    def offers(self, both: Both, port: int = WAITS) -> None:
        """Ia calls, and names a port to Ib."""
        both.call()
        assert both.said()[1].get("Back") == str(port)

    @pytest.mark.parametrize("opens", [False, True])
    def test_its_own_address(self, opens: bool, simultaneous: Simultaneous) -> None:
        """Where it has named an address at which it is not seen no callee can come to it, and no
        port is opened where it is (I1). Where it is seen there they can, at once, at its port.
        """
        opener = Opener()
        options = {"opener": opener} if opens else {}
        both = self.both(simultaneous, address="127.0.0.77", **options)
        self.fails(both, self.SEEN, "127.0.0.77")
        both.ia.settings = replace(both.ia.settings, address=HOST)
        self.offers(both)
        self.offers(self.both(simultaneous, address=HOST, port=4444, **options), 4444)
        assert opener.asked == []

    def one_call(self, both: Both, **options: Any) -> None:
        """Ia calls once, over a line of its own."""
        reactor: Any = both.world.clock
        dialled = dial(reactor, mediator_at(reactor), "Ia")
        both.world.run()
        port = CalleePort(**{"listen": Listener(both.world), **options})
        placing = place_one_call(reactor, result_of(dialled), "Ib", Maker(), port=port)
        both.outcome = Outcome(Deferred.fromCoroutine(placing))
        both.world.run()

    def test_one_call(self, simultaneous: Simultaneous) -> None:
        """So it is with an address for one call; and where it can't listen, that is why."""
        both = self.both(simultaneous)
        self.one_call(both, address=("127.0.0.77", WAITS))
        self.named(both, self.SEEN, "127.0.0.77")
        fails = Listener(both.world, fails=CannotListenError(HOST, WAITS, OSError("in use")))
        self.one_call(both, listen=fails, address=(HOST, WAITS))
        why = "there is nowhere to wait for the callee: Couldn't listen on 127.0.0.1:4000: in use."
        self.named(both, why)
        self.one_call(both, address=(HOST, 4444))
        assert both.said()[1].get("Back") == "4444"

    def test_no_port_is_opened(self, simultaneous: Simultaneous) -> None:
        """A router that has opened none is asked again after a minute; till then the reason is
        told at once.
        """
        opener = Opener("no router answers")
        both = self.both(simultaneous, opener=opener)
        why = "no port could be opened for the callee: no router answers"
        self.fails(both, why)
        opener.place = (HOST, WAITS)
        both.world.advance(RETRY_AFTER - 0.1)
        self.fails(both, why)
        assert len(opener.asked) == 1
        both.world.advance(0.1)
        self.offers(both)
        assert len(opener.asked) == 2

    def test_slow(self, simultaneous: Simultaneous) -> None:
        """Nor is one waited for again that has said nothing in time."""
        opener = Opener(None)
        both = self.both(simultaneous, opener=opener)
        both.call()
        both.world.advance(OPEN_TIMEOUT - 0.1)
        assert not [one for one in both.world.heard if "Callee" in one.fields]
        both.world.advance(0.1)
        why = "the router has not opened a port in 4 seconds"
        self.named(both, why)
        for _ in range(2):
            both.world.advance(20)
            self.fails(both, why)
        assert len(opener.asked) == 1
        both.world.advance(20)  # what is told in between does not put it off
        both.call()
        both.world.advance(OPEN_TIMEOUT)
        assert len(opener.asked) == 2
