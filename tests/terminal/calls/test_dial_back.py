"""The callee comes to meet its caller: when it dials, and what becomes of it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred

from broker.messages.grammar import NOTIFY
from broker.messages.message import Message
from broker.messages.statements import PERMISSION_DENIED, TERMINATE
from broker.tables.sessions import UNSPENT_SECONDS
from broker.terminal.calls.dial_back import DIALS_MOST
from broker.terminal.calls.place_call import DIAL_TIMEOUT
from broker.terminal.candidates import BACK, HOLE_PUNCH, Candidate
from broker.terminal.channel.records import RecordType
from broker.terminal.incoming.listener import HANDSHAKE_TIMEOUT, UNPROVEN_MOST
from broker.terminal.registration.client import MediatorClient
from broker.terminal.registration.notices import ConnectBackRequest, PendingCall
from tests.support.clock import advance
from tests.support.log import the_log
from tests.support.transport import Client, connect
from tests.terminal.keys import (
    CALLER,
    KEY,
    PASSWORD,
    REPLY_PASSWORD,
    SESSION,
)
from tests.terminal.meeting import (
    MEETING,
    PUBLIC,
    SHARED,
    TAKES,
    WAITS,
    Simultaneous,
    stand_in,
)
from tests.terminal.network import HOST, MEDIATOR_PORT, Outcome, World
from tests.terminal.peers import Requester
from tests.terminal.speakers import Echo, HalfCloseable, Handler, Maker


@pytest.fixture(autouse=True)
def simultaneous(monkeypatch: pytest.MonkeyPatch) -> Simultaneous:
    """Both sides' sockets."""
    return stand_in(monkeypatch)


class Home:
    """Ib, which a mediator that a test plays tells of calls.

    :ivar ib: the callee
    :ivar maker: makes what answers where its caller waits
    """

    def __init__(self, sockets: Simultaneous | None = None, **options: Any) -> None:
        self.world = World()
        if sockets is not None:
            sockets.world = self.world
        self.handler = Handler(Echo)
        options = {"handler": self.handler, **options}
        self.ib = self.world.terminal("Ib", TAKES, **options)
        self.maker = Maker(HalfCloseable)
        self.world.listen(WAITS, self.maker)
        pair = self.world.line_of("Ib")
        self.mediator: Any = pair.b.protocol
        line: Any = self.ib._registration.client
        self.line: MediatorClient = line

    def announce(
        self, *, back: str | None = None, seen: str | None = None, session: str = SESSION
    ) -> Home:
        """The mediator says that Ia calls (fig. 5e)."""
        fields = {
            "Caller ID": CALLER,
            "Password": PASSWORD,
            "Encrypt Key": KEY,
            "Session": session,
            "Expires": "3600",
            "Reply Password": REPLY_PASSWORD,
        }
        if seen is not None:
            fields["Caller Seen"] = seen
        if back is not None:
            fields["Caller Back"] = back
        self.mediator.send(Message.of(NOTIFY, fields))
        self.world.run()
        return self

    def waits(self, **other: Any) -> Home:
        """Ia calls, and can be come to."""
        return self.announce(back=f"{HOST} {WAITS}", **other)

    def terminate(self, session: str = SESSION) -> None:
        """The mediator says that it is void."""
        self.mediator.send(Message.of(NOTIFY, {"Session": session, "": TERMINATE}))
        self.world.run()

    def requests(self, session: str = SESSION) -> Requester:
        """Ia comes along another way, and sends its REQUEST."""
        client = connect(self.world.factory_at(TAKES), self.world.clock, port=TAKES)
        return Requester(client, session=session).send()

    @property
    def dialled(self) -> list[tuple[float, int]]:
        """When it has dialled which port, beside the mediator's."""
        return [one for one in self.world.dialled if one[1] != MEDIATOR_PORT]

    @property
    def at_rest(self) -> bool:
        """Whether nothing is dialled or about to be, and nobody is at the doors."""
        ib, listener = self.ib, self.ib._listener
        return not (
            ib._dial_back._timers
            or ib._dial_back._dialling
            or listener._unproven
            or listener._proving
            or len(listener._held)
        )


class DialsTests:
    """When the callee dials its caller."""

    def test_half_a_second_later(self) -> None:
        """The caller's own candidates have that time; then it says for which session it has come,
        and nothing else until it is spoken to.
        """
        home = Home().waits()
        home.world.advance(0.49)
        assert home.dialled == []
        home.world.advance(0.01)
        assert home.dialled == [(0.5, WAITS)]
        (protocol,) = home.maker.made
        assert protocol.received == Message(NOTIFY, Session=SESSION).encode()
        home.world.advance(20)
        assert len(home.dialled) == 1

    def test_both_dial(self, simultaneous: Simultaneous) -> None:
        """From the line's own port, a quarter of a second before; there it says nothing."""
        home = Home(simultaneous).announce(seen="198.50.100.7 40001")
        home.world.advance(0.24)
        assert simultaneous.begun == []
        home.world.advance(0.01)
        assert simultaneous.begun == [(0.25, SHARED, MEETING, DIAL_TIMEOUT)]
        assert simultaneous.stands().bytes() == b""
        assert home.dialled == []
        home = Home(Simultaneous()).waits(seen="198.50.100.7 40001")  # one beside the other
        home.world.advance(0.5)
        assert home.dialled == [(0.5, WAITS)]

    def test_not_asked_for(self, simultaneous: Simultaneous) -> None:
        """A caller that says nothing of that is dialled by nobody."""
        home = Home(simultaneous).announce()
        home.world.advance(20)
        assert (home.dialled, simultaneous.begun) == ([], [])
        assert home.at_rest

    def test_no_port_to_share(
        self, simultaneous: Simultaneous, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where the line's port can't be dialled from, it is not."""
        monkeypatch.setattr(MediatorClient, "share_port", lambda line: None)
        home = Home(simultaneous).waits(seen="198.50.100.7 40001")
        home.world.advance(0.5)
        assert simultaneous.begun == []
        assert home.dialled == [(0.5, WAITS)]

    @pytest.mark.parametrize("said", ["nobody 4000", "127.0.0.1", "127.0.0.1 0", "127.0.0.1:4000"])
    def test_no_place(self, said: str) -> None:
        """A mediator that tells of no place has not told of any call."""
        home = Home()
        text = Message.of(
            NOTIFY,
            {
                "Caller ID": CALLER,
                "Password": PASSWORD,
                "Encrypt Key": KEY,
                "Session": SESSION,
                "Reply Password": REPLY_PASSWORD,
            },
        ).encode()
        home.mediator.write(text[:-2] + f"Caller Back:{said}\r\n\r\n".encode())
        home.world.run()
        assert len(home.ib._pending) == 0


class NotDialledTests:
    """When it need not, or must not, any more."""

    def nobody(self, home: Home, simultaneous: Simultaneous, seconds: float = 20) -> None:
        """It dials nobody from now on."""
        home.world.advance(seconds)
        assert (home.dialled, simultaneous.begun) == ([], [])
        assert home.at_rest

    def called(self, simultaneous: Simultaneous) -> Home:
        """Ia calls, and can be come to in both ways."""
        return Home(simultaneous).waits(seen="198.50.100.7 40001")

    def test_a_request_was_shown(self, simultaneous: Simultaneous) -> None:
        """Who is about to prove itself need not be come to."""
        home = self.called(simultaneous)
        home.requests()
        home.world.advance(0.5)
        assert (home.dialled, simultaneous.begun) == ([], [])

    def test_and_came_to_nothing(self, simultaneous: Simultaneous) -> None:
        """Unless nothing has come of it by then."""
        home = self.called(simultaneous)
        requester = home.requests()
        home.world.advance(0.3)
        requester.client.vanish()
        home.world.advance(0.2)
        assert simultaneous.begun == []
        assert home.dialled == [(0.5, WAITS)]

    @pytest.mark.parametrize("how", ["begun", "terminated", "line lost", "stopped"])
    def test_not_now(self, how: str, simultaneous: Simultaneous) -> None:
        """Nobody is dialled for a session that has begun (I7) or is void, nor once the mediator is
        lost (I2) or the terminal stops: no timer waits to no purpose.
        """
        home = self.called(simultaneous)
        if how == "begun":
            home.requests().prove()
            assert len(home.handler.calls) == 1
        elif how == "terminated":
            home.terminate()
        elif how == "line lost":
            home.world.lose_line("Ib")
        else:
            stopped = Outcome(home.ib.stopService())
            home.world.run()
            assert stopped.done
        assert home.ib._dial_back._timers == {}
        self.nobody(home, simultaneous)

    def test_another_is(self) -> None:
        """That another session is void is nothing to this one."""
        home = Home().waits()
        home.terminate("S9")
        home.world.advance(0.5)
        assert home.dialled == [(0.5, WAITS)]

    def test_called_anew(self) -> None:
        """The same caller's new call voids the one before: it is come to once, for the new one."""
        home = Home().waits()
        home.world.advance(0.2)
        home.waits(session="S9")
        home.world.advance(5)
        assert home.dialled == [(0.7, WAITS)]
        (protocol,) = home.maker.made
        assert protocol.received == Message(NOTIFY, Session="S9").encode()

    @pytest.mark.parametrize("asked", [False, True], ids=["permitted", "by password"])
    def test_called_anew_on_its_way(self, asked: bool, simultaneous: Simultaneous) -> None:
        """A dial for the call that is void now is given up; that is no failure (I16)."""
        home = Home(simultaneous)
        old = replace(_call("S1", CALLER), back=(PUBLIC, WAITS), seen=MEETING)
        if asked:
            home.ib.dial_back(ConnectBackRequest(old, PUBLIC, WAITS))
        else:
            home.ib.call_announced(home.line, old)
            advance(home.world.clock, 0.5)
        dial = home.world.clock.dials[-1]
        assert (dial.host, dial.over) == (PUBLIC, False)
        home.ib.call_announced(home.line, _call("S2", CALLER))
        assert dial.over
        assert simultaneous.given_up == (not asked)
        assert home.at_rest
        assert [message for message in home.world.heard if "End" in message.fields] == []

    def test_its_own_address(self, simultaneous: Simultaneous) -> None:
        """Nor does one that has named an address: whoever is dialled sees where it is (I1)."""
        home = Home(simultaneous, address=HOST).waits(seen="198.50.100.7 40001")
        assert home.ib._dial_back._timers == {}
        self.nobody(home, simultaneous)
        assert len(home.ib._pending) == 1
        home.requests().prove()  # it is called as ever
        assert len(home.handler.calls) == 1

    def test_expired(self, simultaneous: Simultaneous) -> None:
        """A session that is too old by then (I10)."""
        home = Home(simultaneous)
        now = home.world.clock.seconds()
        call = PendingCall(
            SESSION, CALLER, PASSWORD, REPLY_PASSWORD, KEY, now + 0.25, (HOST, WAITS), MEETING
        )
        home.ib.call_announced(home.line, call)
        self.nobody(home, simultaneous)

    @pytest.mark.parametrize("way", ["back", "seen"])
    @pytest.mark.parametrize("how", ["stopService", "terminate", "begun", "line lost"])
    def test_on_its_way(self, way: str, how: str, simultaneous: Simultaneous) -> None:
        """A dial that is under way is given up, and so is its door; that is no failure."""
        home = Home(simultaneous)
        if way == "back":
            home.announce(back=f"{PUBLIC} {WAITS}")
        else:
            home.announce(seen=f"{PUBLIC} 40001")
        advance(home.world.clock, 0.5)  # and nobody answers dials
        (dials,) = home.ib._dial_back._dialling.values()
        assert len(dials) == 1
        dial = home.world.clock.dials[-1]
        with the_log() as lines:
            if how == "stopService":
                home.ib.stopService()
            elif how == "terminate":
                home.ib.session_terminated(SESSION)
            elif how == "begun":
                home.requests().prove()
            else:
                home.world.lose_line("Ib")
        assert home.ib._dial_back._dialling == {}
        assert len(home.ib._listener._unproven) == 0
        if way == "back":
            assert dial.over
        else:
            assert simultaneous.given_up == 1
        assert [line for line in lines if "could not be reached" in line] == []


class JudgedTests:
    """A caller must not send a terminal just anywhere (I12)."""

    def dials(
        self, host: str, simultaneous: Simultaneous, port: int = WAITS, mediator: str = ""
    ) -> tuple[bool, bool]:
        """Whether it dials there, as where its caller waits, and as where that comes from."""
        home = Home(simultaneous)
        if mediator:
            transport: Any = home.line.stream.transport
            transport.peer = IPv4Address("TCP", mediator, MEDIATOR_PORT)
        before = len(home.world.clock.dials)
        home.announce(back=f"{host} {port}", seen=f"{host} {port}")
        advance(home.world.clock, 1)
        assert len(home.ib._pending) == 1  # it is expected all the same
        return len(home.world.clock.dials) > before, bool(simultaneous.begun)

    @pytest.mark.parametrize(
        "host",
        [
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "255.255.255.255",
            "fe80::1",
            "192.168.1.9",
            "10.0.0.1",
            "169.254.1.1",
            "fd00::1",
            "64:ff9b::7f00:1",
            "::ffff:10.0.0.1",
        ],
    )
    def test_not_dialled(self, host: str, simultaneous: Simultaneous) -> None:
        """Neither what is no place nor the networks about it; the log says why."""
        with the_log() as lines:
            assert self.dials(host, simultaneous) == (False, False)
        assert [line for line in lines if "Ia is not dialled: " in line]

    @pytest.mark.parametrize(
        ("host", "mediator", "dialled"),
        [
            # Neither itself nor what is private, if its mediator is in the Internet.
            *((host, PUBLIC, False) for host in ("127.0.0.1", "::1", "10.0.0.1")),
            # The Internet, and the kind of network in which its mediator is.
            *(("198.50.100.9", mediator, True) for mediator in ("", PUBLIC, "10.0.0.1")),
            ("10.9.9.9", "10.0.0.1", True),
        ],
    )
    def test_by_its_mediator(
        self, host: str, mediator: str, dialled: bool, simultaneous: Simultaneous
    ) -> None:
        """What is dialled depends on where its mediator is."""
        assert self.dials(host, simultaneous, mediator=mediator) == (dialled, dialled)

    def test_itself(self, simultaneous: Simultaneous) -> None:
        """Its own listener is not."""
        assert self.dials(HOST, simultaneous, TAKES) == (False, False)
        assert self.dials(HOST, Simultaneous(), TAKES + 1)[0]


class CapsTests:
    """What a flood of calls can make it dial is bounded (I15)."""

    def test_dials(self, simultaneous: Simultaneous) -> None:
        """So many at a time, whatever they are for; the next call is dialled again."""
        home = Home(simultaneous)
        under_way = home.ib._dial_back._dialling
        for n in range(DIALS_MOST):
            under_way[f"S{n}"] = [Deferred()]
        home.waits(seen="198.50.100.7 40001")
        home.world.advance(1)
        assert (home.dialled, simultaneous.begun) == ([], [])
        under_way.pop("S0")
        home.waits(seen="198.50.100.7 40001")
        home.world.advance(1)
        assert len(home.dialled) + len(simultaneous.begun) == 1
        for session in [one for one in under_way if one != SESSION]:
            del under_way[session]

    def test_one_caller(self, simultaneous: Simultaneous) -> None:
        """However often one caller calls, it is dialled for its newest call alone (I16): others
        are dialled beside it.
        """
        home = Home(simultaneous)
        for n in range(DIALS_MOST):
            call = replace(_call(f"S{n}", CALLER), back=(PUBLIC, WAITS), seen=MEETING)
            home.ib.call_announced(home.line, call)
            assert list(home.ib._dial_back._timers) == [f"S{n}"]
            advance(home.world.clock, 0.5)  # and nobody answers
        dials = [dial for dial in home.world.clock.dials if dial.host == PUBLIC]
        assert [dial.over for dial in dials] == [True] * (DIALS_MOST - 1) + [False]
        assert list(home.ib._dial_back._dialling) == [f"S{DIALS_MOST - 1}"]
        assert (len(simultaneous.begun), len(simultaneous.waiting)) == (DIALS_MOST, 1)
        home.ib.call_announced(home.line, replace(_call("S9", "Ic"), back=("198.50.100.9", WAITS)))
        advance(home.world.clock, 0.5)
        last = home.world.clock.dials[-1]
        assert (last.host, last.over) == ("198.50.100.9", False)
        assert not dials[-1].over

    def test_doors(self, simultaneous: Simultaneous) -> None:
        """Nor are there more connections that have proven nothing."""
        home = Home(simultaneous)
        clients = [
            connect(home.world.factory_at(TAKES), home.world.clock, port=TAKES)
            for _ in range(UNPROVEN_MOST)
        ]
        home.waits(seen="198.50.100.7 40001")
        home.world.advance(1)
        assert (home.dialled, simultaneous.begun) == ([], [])
        clients[0].vanish()
        home.waits()
        home.world.advance(1)
        assert len(home.dialled) == 1


class ComeTests:
    """A connection that the callee has made: it serves one session, and its caller speaks first."""

    def come(self, home: Home) -> Client:
        """It has come: the caller's end, with what was said first read away."""
        home.world.leave(WAITS)
        home.waits()
        advance(home.world.clock, 0.5)
        client = home.world.clock.dials[-1].accept()
        assert client.received() == [Message(NOTIFY, Session=SESSION)]
        return client

    def test_a_call(self) -> None:
        """The caller shows its REQUEST and proves itself, as at the door (A12, A23)."""
        home = Home()
        requester = Requester(self.come(home)).send().prove(b"hello")
        ((caller, session, protocol),) = home.handler.calls
        assert (caller, session) == (CALLER, SESSION)
        assert protocol.transport.candidate == Candidate(BACK, HOST, WAITS)
        assert requester.heard() == [(RecordType.DATA, b"hello")]
        assert home.at_rest

    def test_a_call_where_both_dialled(self, simultaneous: Simultaneous) -> None:
        """So it does there."""
        home = Home(simultaneous).announce(seen="198.50.100.7 40001")
        home.world.advance(0.25)
        Requester(simultaneous.stands()).send().prove()
        ((_, _, protocol),) = home.handler.calls
        assert protocol.transport.candidate == Candidate(HOLE_PUNCH, *MEETING)
        assert home.at_rest

    def test_at_its_own_door(self) -> None:
        """Who came by itself has come along no way that is known here."""
        home = Home().announce()
        home.requests().prove()
        assert home.handler.calls[0][2].transport.candidate is None

    @pytest.mark.parametrize("both", [False, True])
    def test_another_session(self, both: bool, simultaneous: Simultaneous) -> None:
        """Another session is not served there, though it is expected; nor where both dialled."""
        home = Home(simultaneous)
        if both:
            home.announce(seen="198.50.100.7 40001").world.advance(0.25)
        client = simultaneous.stands() if both else self.come(home)
        home.ib._listener.expect(_call("S9", "Ic"))
        requester = Requester(client, session="S9", caller="Ic", identifier="Ic").send()
        assert requester.shut_out
        assert home.handler.calls == []
        assert len(home.ib._listener._held) == 0

    def test_nobody_comes_there(self) -> None:
        """Nor does whoever is there come for a session of ours."""
        home = Home()
        client = self.come(home)
        waiter = home.ib._connect_back
        call: Any = SimpleNamespace(clock=home.world.clock, session="S9", callee="Ic")
        events: Any = None  # nothing is spoken
        waits = Outcome(waiter.wait(call, Candidate(BACK, HOST, WAITS), events))
        client.send(Message(NOTIFY, Session="S9"))
        assert (client.closed, client.bytes()) == (True, b"")
        assert not waits.done

    def test_who_is_it_not(self) -> None:
        """Who is there must know what its mediator has given the caller."""
        home = Home()
        requester = Requester(self.come(home), password="guess").send()
        assert requester.answer() == Message(NOTIFY, PERMISSION_DENIED)
        assert home.handler.calls == []
        assert len(home.ib._pending) == 1

    def test_nobody_speaks(self) -> None:
        """It is left after five seconds."""
        home = Home()
        client = self.come(home)
        advance(home.world.clock, HANDSHAKE_TIMEOUT - 0.1)
        assert not client.closed
        advance(home.world.clock, 0.1)
        assert client.closed
        assert home.at_rest

    def test_nobody_is_there(self) -> None:
        """Then the caller may come all the same: nobody is told that the call has failed."""
        home = Home()
        home.world.leave(WAITS)
        with the_log() as lines:
            home.waits().world.advance(1)
        assert [line for line in lines if "Ia could not be reached" in line]
        assert home.at_rest
        assert [message for message in home.world.heard if "End" in message.fields] == []
        home.requests().prove()
        assert len(home.handler.calls) == 1

    def test_it_cannot_be_dialled_so(self, simultaneous: Simultaneous) -> None:
        """Nor where the port can't be shared after all."""
        home = Home(simultaneous).announce(seen="198.50.100.7 40001")
        home.world.advance(0.25)
        simultaneous.fails()
        assert home.at_rest
        assert len(home.ib._pending) == 1

    def test_two_at_once(self) -> None:
        """A caller that proves itself along one way is closed on along the others."""
        home = Home()
        client = self.come(home)
        first, second = Requester(client).send(), home.requests()
        second.prove()
        assert first.client.closed
        assert not second.client.closed
        assert len(home.handler.calls) == 1
        assert home.at_rest


def _call(session: str, caller: str) -> PendingCall:
    return PendingCall(session, caller, PASSWORD, REPLY_PASSWORD, KEY, UNSPENT_SECONDS)
