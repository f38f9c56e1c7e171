"""Connect-back between terminals: who is called back, where to, and what a stranger learns."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from ipaddress import ip_network
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.error import CannotListenError

from broker.messages.errors import BadRequest, PermissionDenied
from broker.messages.grammar import NOTIFY, REQUEST
from broker.messages.message import Message
from broker.messages.statements import REQUEST_ACCEPTED
from broker.tables.sessions import UNSPENT_SECONDS
from broker.terminal.calls.dial_back import DIALS_MOST, knows
from broker.terminal.errors import CallFailed, CannotLogIn
from broker.terminal.incoming.listener import HANDSHAKE_TIMEOUT, HANDSHAKES, HELD_MOST, HOLD_SECONDS
from broker.terminal.registration.client import CONSENT_TIMEOUT, MediatorClient
from broker.terminal.registration.notices import ConnectBackRequest
from broker.terminal.terminal import Terminal
from tests.support.clock import advance, settle
from tests.support.log import the_log
from tests.support.transport import Client, connect, parse_all
from tests.terminal.keys import (
    CALLEE,
    CALLER,
    KEY,
    PASSWORD,
    REPLY_PASSWORD,
    SESSION,
    a_handshake,
    an_answer,
    an_expected_call,
    framed,
)
from tests.terminal.network import HOST, Listener, Outcome, World
from tests.terminal.peers import Opener
from tests.terminal.scene import Events, Wire
from tests.terminal.speakers import Echo, HalfCloseable, Handler, Maker, Plain
from tests.terminal.test_terminal import Limit

SECRET = "open sesame"
#: Where the caller waits, and where the callee takes ordinary calls.
WAITS = 4000
TAKES = 1203


def a_callee(world: World, **options: Any) -> tuple[Terminal, Handler]:
    """Ib, which is reached by its call password."""
    handler = Handler(Echo)
    options = {"handler": handler, "call_password": SECRET, "policy": "Password", **options}
    return world.terminal("Ib", TAKES, **options), handler


def ask(
    world: World, caller: Terminal, maker: Any = None, password: str = SECRET, **options: Any
) -> Outcome:
    """Ia asks Ib to come."""
    options.setdefault("listen", Listener(world, WAITS))
    outcome = Outcome(
        caller.call_back("Ib", maker or Maker(HalfCloseable), password=password, **options)
    )
    world.run()
    return outcome


def stands(world: World, caller: Terminal, **options: Any) -> Any:
    """A call that stands: the caller's protocol."""
    outcome = ask(world, caller, **options)
    assert outcome.error is None
    assert outcome.value is not None
    return outcome.value


def denied(world: World, outcome: Outcome) -> None:
    """It is refused, in the mediator's own time."""
    assert not outcome.done
    world.advance(5)
    assert isinstance(outcome.error, PermissionDenied)
    assert outcome.error.cause == ""


class Gate:
    """A decision on a call password that a test makes.

    :ivar shown: who has shown what
    """

    def __init__(self) -> None:
        self.shown: list[tuple[str, str]] = []
        self.decided: Deferred[bool] = Deferred()

    def __call__(self, caller: str, password: str) -> Awaitable[bool]:
        self.shown.append((caller, password))
        return self.decided


class WholeWayTests:
    """A caller whom the callee permits nothing, and who knows its call password (D3–D8, D11)."""

    def test_a_call(self) -> None:
        """The callee dials, the caller speaks first, and both know whom they speak with."""
        world = World()
        _, handler = a_callee(world)
        caller = world.terminal("Ia")
        protocol = stands(world, caller)
        assert world.dialled[-1][1] == WAITS
        protocol.transport.write(b"hello")
        world.run()
        assert protocol.received == b"hello"
        ((who, _, served),) = handler.calls
        assert (who, served.transport.peer, protocol.transport.peer) == ("Ia", "Ia", "Ib")

    def test_its_end(self) -> None:
        """The call ends as any other, is reported, and its listener is closed with it (D9)."""
        world = World()
        a_callee(world)
        caller = world.terminal("Ia")
        protocol = stands(world, caller)
        assert world.listens(WAITS)
        protocol.transport.loseConnection()
        world.run()
        assert not world.listens(WAITS)
        ends = [message.get("End") for message in world.heard if "End" in message.fields]
        assert ends == ["Completed", "Completed"]
        assert len(world.mediator.mediator.context.sessions) == 0

    def test_at_the_direct_listener(self) -> None:
        """A terminal that listens anyway needs no further listener, and keeps its own."""
        world = World()
        a_callee(world)
        caller = world.terminal("Ia", WAITS)
        protocol = stands(world, caller, listen=None)
        protocol.transport.loseConnection()
        world.run()
        assert world.listens(WAITS)

    def test_two_at_once(self) -> None:
        """Each callee that comes is known by its session, at one and the same listener."""
        world = World()
        _, first = a_callee(world)
        second = Handler(Plain)
        world.terminal("Ic", 1300, handler=second, call_password="other", policy="Password")
        caller = world.terminal("Ia", WAITS)
        outcomes = [
            Outcome(caller.call_back(name, Maker(HalfCloseable), password=password))
            for name, password in (("Ib", SECRET), ("Ic", "other"))
        ]
        world.run()
        for name, outcome, handler in zip(("Ib", "Ic"), outcomes, (first, second), strict=True):
            assert outcome.value.transport.peer == name
            outcome.value.transport.write(name.encode())
            world.run()
            assert handler.calls[0][2].received == name.encode()

    def test_one_session_a_call(self) -> None:
        """What is granted is spent by the call, and by nothing after it (I7)."""
        world = World()
        callee, _ = a_callee(world)
        caller = world.terminal("Ia")
        protocol = stands(world, caller)
        session = protocol.transport.session
        assert callee._pending.find(session, 0) is None
        late = connect(world.factory_at(WAITS), world.clock, port=WAITS)
        late.send(Message(NOTIFY, Session=session))
        assert (late.closed, late.bytes()) == (True, b"")

    def test_where_it_is_from_outside(self) -> None:
        """The caller is told of by the address that it gives (D3)."""
        world = World()
        a_callee(world)
        caller = world.terminal("Ia")
        outcome = ask(world, caller, listen=Listener(world, 0), address=("127.0.0.1", WAITS))
        assert world.dialled[-1][1] == WAITS
        assert str(outcome.error) == "Ib could not connect to us"  # nobody is there

    def test_in_vain(self) -> None:
        """That the callee could not connect is told at once, and all is closed (D7, C12)."""
        world = World()
        a_callee(world)
        caller = world.terminal("Ia")
        opener = Opener(outside=(HOST, 4444))
        outcome = ask(world, caller, opener=opener)
        assert world.dialled[-1][1] == 4444
        assert isinstance(outcome.error, CallFailed)
        assert str(outcome.error) == "Ib could not connect to us"
        assert (opener.opened, opener.closed) == ([], 1)
        assert not world.listens(WAITS)
        assert len(world.mediator.mediator.context.sessions) == 0

    def test_the_terminals_own_opener(self) -> None:
        """It is used where nothing else is said, and not where an address is."""
        world = World()
        a_callee(world)
        opener = Opener()
        caller = world.terminal("Ia", opener=opener)
        stands(world, caller).transport.loseConnection()
        world.run()
        assert opener.closed == 1
        stands(world, caller, address=(HOST, WAITS)).transport.loseConnection()
        world.run()
        assert opener.closed == 1

    def test_a_port_opened_for_it(self) -> None:
        """A port is opened in the router, told, and closed with the call (D9)."""
        world = World()
        a_callee(world)
        caller = world.terminal("Ia")
        opener = Opener()
        protocol = stands(world, caller, opener=opener)
        assert opener.opened == [WAITS]
        protocol.transport.loseConnection()
        world.run()
        assert (opener.opened, opener.closed) == ([], 1)

    def test_reached_by_its_password_alone(self) -> None:
        """Whom its list accepts still can't call it otherwise."""
        world = World()
        a_callee(world, accept=["Ia"])
        outcome = Outcome(world.terminal("Ia").call("Ib", Maker()))
        world.run()
        assert isinstance(outcome.error, PermissionDenied)

    def test_an_application_decides(self) -> None:
        """The application may look at who shows what, and take its time."""
        world = World()
        gate = Gate()
        a_callee(world, call_password=gate)
        outcome = ask(world, world.terminal("Ia"), password="anything")
        world.advance(2)
        assert gate.shown == [("Ia", "anything")]
        assert not outcome.done
        gate.decided.callback(True)
        world.run()
        assert outcome.value is not None


class RefusedTests:
    """The callee decides; where it doesn't come it opens nothing (D7)."""

    def nobody_came(self, world: World, **callee: Any) -> None:
        """Ia shows the right password, and is denied all the same."""
        a_callee(world, **callee)
        denied(world, ask(world, world.terminal("Ia")))
        assert WAITS not in [port for _, port in world.dialled]
        assert not world.listens(WAITS)

    def test_a_wrong_password(self) -> None:
        """Nothing is opened, and the caller is told no more than that it is denied."""
        world = World()
        a_callee(world)
        with the_log() as lines:
            denied(world, ask(world, world.terminal("Ia"), password="guess"))
        assert WAITS not in [port for _, port in world.dialled]
        assert any("Ia showed a wrong call password" in line for line in lines)
        assert not any("guess" in line or SECRET in line for line in lines)

    def test_no_password_at_all(self) -> None:
        """A terminal that has none is called back by nobody, whatever the mediator says (I3)."""
        self.nobody_came(World(), call_password=None)

    def test_another_policy(self) -> None:
        """Nor does a password help where the list decides."""
        self.nobody_came(World(), policy="List")

    def test_busy(self) -> None:
        """A busy callee does not come (B1)."""
        load = Limit()
        load.idle = False
        self.nobody_came(World(), load=load)

    def test_in_a_call(self) -> None:
        """Nor one that takes one call at a time and is in one (A25)."""
        world = World()
        a_callee(world, one_at_a_time=True)
        stands(world, world.terminal("Ic"))
        outcome = ask(world, world.terminal("Ia"), listen=Listener(world, 4001))
        denied(world, outcome)
        assert 4001 not in [port for _, port in world.dialled]

    def test_an_application_that_fails(self) -> None:
        """An exception is a refusal (I3), and is logged."""

        def fails(caller: str, password: str) -> bool:
            raise RuntimeError("the application is wrong")

        with the_log() as lines:
            self.nobody_came(World(), call_password=fails)
        assert any("the application is wrong" in line for line in lines)

    @pytest.mark.parametrize("said", [1, "yes", None])
    def test_an_application_that_says_neither(self, said: Any) -> None:
        """Nothing but ``True`` admits anybody (I3)."""
        self.nobody_came(World(), call_password=lambda caller, password: succeed(said))

    def test_too_late(self) -> None:
        """Who decides after the mediator has given up comes no more."""
        world = World()
        gate = Gate()
        a_callee(world, call_password=gate)
        denied(world, ask(world, world.terminal("Ia")))
        gate.decided.callback(True)
        world.run()
        assert WAITS not in [port for _, port in world.dialled]

    def test_the_line_is_lost(self) -> None:
        """Who has lost its mediator meanwhile comes no more (I26)."""
        world = World()
        gate = Gate()
        a_callee(world, call_password=gate)
        ask(world, world.terminal("Ia"))
        world.lose_line("Ib")
        assert gate.decided.called  # given up
        world.run()
        assert WAITS not in [port for _, port in world.dialled]

    def test_nowhere_to_wait(self) -> None:
        """A caller that can't listen asks nobody."""
        world = World()
        caller = world.terminal("Ia")
        fails = CannotListenError("127.0.0.1", WAITS, OSError("in use"))
        outcome = ask(world, caller, listen=Listener(world, fails=fails))
        assert isinstance(outcome.error, CallFailed)
        assert "there is nowhere to wait for the callee" in str(outcome.error)
        assert not [message for message in world.heard if message.verb == REQUEST]

    def test_listens_nowhere(self) -> None:
        """It is a mistake of the application's."""
        world = World()
        outcome = ask(world, world.terminal("Ia"), listen=None)
        assert isinstance(outcome.error, ValueError)

    def test_no_port_is_opened(self) -> None:
        """Where the router opens none, nobody is asked, and the listener is closed."""
        world = World()
        outcome = ask(world, world.terminal("Ia"), opener=Opener(fails=True))
        assert isinstance(outcome.error, CallFailed)
        assert "no router answers" in str(outcome.error)
        assert not world.listens(WAITS)

    @pytest.mark.parametrize("password", ["", "a\nCallee:Ic", "x" * 513])
    def test_what_can_be_no_password(self, password: str) -> None:
        """It is never sent, and smuggles in no line."""
        world = World()
        outcome = ask(world, world.terminal("Ia"), password=password)
        assert isinstance(outcome.error, ValueError)
        assert not world.listens(WAITS)


class PlacesTests:
    """Where a callee lets itself be sent (D7)."""

    def asks(
        self, host: str, to: int = WAITS, world: World | None = None, **callee: Any
    ) -> tuple[World, Any]:
        """The mediator tells Ib to come there; whether Ib says that it does."""
        world = world or World()
        a_callee(world, **callee)
        world.run()
        answers: list[Message] = []
        pair = world.line_of("Ib")
        peer: Any = pair.b.protocol
        peer.receiver.ask(
            Message.of(
                REQUEST,
                {
                    "Caller ID": "Ia",
                    "Password": SECRET,
                    "Address": host,
                    "Port": str(to),
                    "Session": SESSION,
                    "Encrypt Key": KEY,
                    "Reply Password": REPLY_PASSWORD,
                },
            )
        ).addCallback(answers.append)
        world.run()
        (answer,) = answers
        return world, answer.statement == REQUEST_ACCEPTED

    @pytest.mark.parametrize(
        "host",
        [
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "fe80::1",
            "192.168.1.9",
            "10.0.0.1",
            "169.254.1.1",
            "www.example.com",
            "64:ff9b::7f00:1",
        ],
    )
    def test_not_dialled(self, host: str) -> None:
        """Neither what is no place, nor the networks about it, nor what must be looked up."""
        world, comes = self.asks(host)
        assert not comes
        assert [port for _, port in world.dialled if port == WAITS] == []

    @pytest.mark.parametrize("host", ["203.0.114.9", "2a00:1450::5", "127.0.0.1", "::1"])
    def test_dialled(self, host: str) -> None:
        """The Internet, and where its mediator is too."""
        assert self.asks(host)[1]

    @pytest.mark.parametrize("host", ["0.0.0.0", "224.0.0.1", "255.255.255.255", "::", "fe80::1"])
    def test_not_even_then(self, host: str) -> None:
        """What is no terminal's place is not dialled, whatever networks were named (I12)."""
        everywhere = [ip_network("0.0.0.0/0"), ip_network("::/0")]
        assert not self.asks(host, call_back_to=everywhere)[1]

    def test_as_its_operator_allows(self) -> None:
        """A network may be named."""
        assert self.asks("10.1.2.3", call_back_to=[ip_network("10.0.0.0/8")])[1]

    @pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1"])
    def test_itself(self, host: str) -> None:
        """Its own listener is not dialled, by whatever address."""
        assert not self.asks(host, TAKES)[1]

    def test_itself_by_its_registered_address(self) -> None:
        """Nor by the address that it has registered."""
        at = "203.0.114.9"
        allowed = [ip_network("203.0.114.0/24")]
        assert not self.asks(at, 4040, World(allowed_networks=allowed), address=at, port=4040)[1]
        assert not self.asks(at, TAKES, World(allowed_networks=allowed), address=at, port=4040)[1]
        assert self.asks(at, 4041, World(allowed_networks=allowed), address=at, port=4040)[1]

    def test_so_many_at_a_time(self) -> None:
        """Dials that get nowhere are bounded (I15)."""
        world = World()
        ib, _ = a_callee(world)
        for n in range(DIALS_MOST):
            ib._dial_back._dialling[f"S{n}"] = [Deferred()]
        denied(world, ask(world, world.terminal("Ia")))
        ib._dial_back._dialling.clear()


class WaitTests:
    """The caller waits for the callee, and for nobody else."""

    class House:
        """A caller whose mediator has said that Ib comes; a test plays whoever does."""

        def __init__(self, *, granted: bool = True, **options: Any) -> None:
            self.world = World()
            self.caller = self.world.terminal("Ia")
            self.maker = Maker(HalfCloseable)
            self.outcome = ask(self.world, self.caller, self.maker, **options)
            pair = self.world.line_of("Ia")
            self.mediator: Any = pair.b.protocol
            if granted:
                self.grant()

        def grant(self) -> None:
            """The mediator says yes."""
            asked = [message for message in self.world.heard if message.verb == REQUEST]
            said = {
                "": REQUEST_ACCEPTED,
                "Session": SESSION,
                "Encrypt Key": KEY,
                "Callee": CALLEE,
                "Expires": "3600",
                "Reply Password": REPLY_PASSWORD,
                "Transaction": str(asked[-1].get("Transaction")),
                "Code": "200",
            }
            self.mediator.send(Message.of(NOTIFY, said))
            self.world.run()

        def arrives(self, session: str = SESSION, host: str = HOST) -> Client:
            """Somebody comes, and says for which session."""
            factory = self.world.factory_at(WAITS)
            client = connect(factory, self.world.clock, port=WAITS, peer_host=host)
            client.send(Message(NOTIFY, Session=session))
            self.world.run()
            return client

        def shake(self, client: Client, **key: str) -> None:
            """It reads the REQUEST, and answers as the callee does."""
            (head,), body = parse_all(client.bytes())
            assert head == Message(REQUEST, Session=SESSION, Length=len(body))
            handshake = a_handshake(initiator=False)
            request = handshake.read(body)
            assert request == Message(REQUEST, Identifier=CALLER, Password=SECRET)
            client.send(framed(SESSION, handshake.write(an_answer(**key)), verb=NOTIFY))
            self.world.run()

    def test_it_comes(self) -> None:
        """The caller speaks first, though it was the callee that dialled."""
        house = self.House()
        house.shake(house.arrives())
        assert house.outcome.value is house.maker.made[0]

    def test_it_says_nothing(self) -> None:
        """To whoever does not say for which session it comes, nobody speaks."""
        house = self.House()
        client = connect(house.world.factory_at(WAITS), house.world.clock, port=WAITS)
        house.world.advance(HANDSHAKE_TIMEOUT + 1)
        assert (client.closed, client.bytes()) == (True, b"")
        assert not house.outcome.done

    @pytest.mark.parametrize(
        "said",
        [
            Message(NOTIFY, Session="S0"),
            Message.of(NOTIFY, {"Session": SESSION, "": "Terminate."}),
            Message(REQUEST, Session=SESSION),
            Message(NOTIFY, Session=SESSION, Length=4),
            Message(NOTIFY, REQUEST_ACCEPTED),
        ],
    )
    def test_it_says_something_else(self, said: Message) -> None:
        """Another session, or another message: closed without a byte."""
        house = self.House()
        client = connect(house.world.factory_at(WAITS), house.world.clock, port=WAITS)
        client.send(said)
        house.world.run()
        assert (client.closed, client.bytes()) == (True, b"")
        assert not house.outcome.done

    def test_a_stranger_does_not_end_it(self) -> None:
        """Who has heard the session and knows no key learns nothing; the callee still comes."""
        house = self.House()
        stranger = house.arrives()
        sent = stranger.bytes()
        assert SECRET.encode() not in sent
        assert b"Identifier" not in sent
        stranger.send(framed(SESSION, bytes(100), verb=NOTIFY))
        house.world.run()
        assert stranger.closed
        assert not house.outcome.done
        house.shake(house.arrives())
        assert house.outcome.value is not None

    def test_who_can_not_prove_to_be_it(self) -> None:
        """The reply password counts too (A23)."""
        house = self.House()
        house.shake(house.arrives(), password="another")
        assert not house.outcome.done
        house.world.advance(UNSPENT_SECONDS)
        assert "could not prove that it is Ib" in str(house.outcome.error)

    def test_who_has_come_is_counted(self) -> None:
        """Strangers take nobody's place for longer than they are there; the callee is none."""
        house = self.House()
        doors = house.caller._listener
        sources = doors.hub.sources._counts
        stranger = house.arrives(host="203.0.114.7")
        assert sources == {"203.0.114.7": (1, 1)}
        stranger.vanish()
        callee = house.arrives(host="203.0.114.8")
        house.shake(callee)
        assert sources == {"203.0.114.8": (0, 1)}
        assert len(doors._unproven) == 0
        callee.vanish()
        assert sources == {}

    def test_four_at_a_time(self) -> None:
        """No more than four handshakes are under way in a session."""
        house = self.House()
        clients = [house.arrives() for _ in range(HANDSHAKES + 1)]
        assert [client.closed for client in clients] == [False] * HANDSHAKES + [True]
        clients[0].vanish()
        house.world.run()
        assert not house.arrives().closed

    def test_the_others_are_closed(self) -> None:
        """Once one has proven to be the callee the others are closed."""
        house = self.House()
        stranger, callee = house.arrives(), house.arrives()
        house.shake(callee)
        assert stranger.closed
        assert not callee.closed

    def test_it_says_more_than_it_may(self) -> None:
        """Before the caller has spoken there is nothing more to say."""
        house = self.House()
        client = connect(house.world.factory_at(WAITS), house.world.clock, port=WAITS)
        client.send(Message(NOTIFY, Session=SESSION).encode() * 2)
        house.world.run()
        assert client.closed
        assert not house.outcome.done

    def test_it_does_not_come(self) -> None:
        """After 30 s it is waited for no longer, and all is closed."""
        house = self.House()
        house.world.advance(UNSPENT_SECONDS - 0.1)
        assert not house.outcome.done
        house.world.advance(0.1)
        assert str(house.outcome.error) == "Ib did not connect back in time"
        assert not house.world.listens(WAITS)

    def test_it_comes_before_the_answer(self) -> None:
        """A callee that overtakes the mediator's answer is held, and silent till then."""
        house = self.House(granted=False)
        early = house.arrives()
        assert (early.closed, early.bytes()) == (False, b"")
        house.grant()
        house.shake(early)
        assert house.outcome.value is not None

    def test_too_early(self) -> None:
        """It is held for two seconds, and no more than so many are."""
        house = self.House(granted=False)
        early = [house.arrives(f"S{n}") for n in range(HELD_MOST + 1)]
        assert [client.closed for client in early] == [False] * HELD_MOST + [True]
        house.world.advance(HOLD_SECONDS)
        assert all(client.closed and not client.bytes() for client in early)

    def test_held_for_another(self) -> None:
        """Once nothing more is asked, whoever came for another session is closed."""
        house = self.House(granted=False)
        other = house.arrives("S7")
        house.grant()
        assert (other.closed, other.bytes()) == (True, b"")

    def test_held_and_gone(self) -> None:
        """Those who were held and left are no longer there to be spoken to, nor in the way."""
        house = self.House(granted=False)
        for _ in range(HANDSHAKES):
            house.arrives().vanish()
        house.grant()
        assert not house.outcome.done
        house.shake(house.arrives())
        assert house.outcome.value is not None

    def test_terminated(self) -> None:
        """The mediator may end the session before the callee comes (I2)."""
        house = self.House()
        house.mediator.send(Message.of(NOTIFY, {"Session": SESSION, "": "Terminate."}))
        house.world.run()
        assert str(house.outcome.error) == "the mediator has ended the session"
        assert not house.world.listens(WAITS)

    def test_given_up(self) -> None:
        """An application may give up at any time; nothing stays open."""
        for granted in (False, True):
            house = self.House(granted=granted)
            house.outcome.deferred.cancel()
            house.world.run()
            assert isinstance(house.outcome.error, CancelledError)
            assert not house.world.listens(WAITS)

    def test_the_terminal_stops(self) -> None:
        """So does the wait, with what was opened for it, and no timer is left."""
        opener = Opener()
        house = self.House(opener=opener)
        house.arrives()
        stopped = Outcome(house.caller.stopService())
        house.world.run()
        assert stopped.done
        assert house.outcome.error is not None
        assert not house.world.listens(WAITS)
        assert opener.closed == 1

    def test_stopping_waits(self) -> None:
        """It is over when what was opened for the call is closed, and not before."""
        closed: Deferred[None] = Deferred()

        class Slow(Opener):
            async def close(self, port: int) -> None:
                await closed

        house = self.House(opener=Slow())
        house.shake(house.arrives())
        stopped = Outcome(house.caller.stopService())
        house.world.advance(20)
        assert not stopped.done
        closed.callback(None)
        house.world.run()
        assert stopped.done

    def test_no_protocol(self) -> None:
        """An application that has no protocol after all fails its own call, at once."""
        world = World()
        a_callee(world)
        outcome = ask(world, world.terminal("Ia"), Maker(lambda: None))
        assert str(outcome.error) == "the application gave no protocol for the call"
        assert not world.listens(WAITS)


class ComingTests:
    """The callee goes where it was told, and serves one session there."""

    def comes(self) -> tuple[World, Terminal, Client, str]:
        """Ib comes to Ia, whom a test plays: what it says, and the session."""
        world = World()
        ib, _ = a_callee(world)
        client = world.client()
        client.type("REGISTER\nIdentifier:Ia\n\n")
        client.text()
        client.type(f"REQUEST\nCallee:Ib\nPassword:{SECRET}\nAddress:{HOST}\nPort:{WAITS}\n\n")
        settled: list[Client] = []
        for _ in range(20):
            settle(world.clock)
            moved = False
            for dial in [one for one in world.clock.dials if not one.over]:
                if dial.port == WAITS:
                    settled.append(dial.accept())
                    moved = True
            for pair in list(world.pairs):
                moved = pair.step() or moved
            if not moved:
                break
        (met,) = settled
        (granted,) = client.received()
        session = str(granted.get("Session"))
        return world, ib, met, session

    def test_what_it_says(self) -> None:
        """For which session it comes, and nothing else: neither who it is nor to whom."""
        _, _, met, session = self.comes()
        assert met.text() == f"NOTIFY\nSession:{session}\n\n"

    def test_another_session(self) -> None:
        """There it serves the session that it has come for, and no other."""
        world, ib, met, _ = self.comes()
        met.bytes()
        ib._listener.expect(an_expected_call(session="S9"))
        handshake = a_handshake(initiator=True, session="S9")
        body = handshake.write(Message(REQUEST, Identifier=CALLER, Password=PASSWORD))
        met.send(framed("S9", body))
        world.run()
        assert (met.closed, met.bytes()) == (True, b"")

    def test_a_caller_that_comes_in_turn(self) -> None:
        """There nobody comes for a session of ours, though we wait for somebody elsewhere."""
        world, ib, met, _ = self.comes()
        met.bytes()
        ib.call_back("Ix", Maker(), password="x").addErrback(lambda _: None)
        world.run()
        met.send(Message(NOTIFY, Session="S9"))
        world.run()
        assert (met.closed, met.bytes()) == (True, b"")

    def test_nobody_speaks(self) -> None:
        """A caller that says nothing is left after a while."""
        world, _, met, _ = self.comes()
        world.advance(HANDSHAKE_TIMEOUT)
        assert met.closed

    def test_nobody_is_there(self) -> None:
        """It says so to the mediator, which forgets the session."""
        world = World()
        a_callee(world)
        client = world.client()
        client.type("REGISTER\nIdentifier:Ia\n\n")
        client.type(f"REQUEST\nCallee:Ib\nPassword:{SECRET}\nAddress:{HOST}\nPort:{WAITS}\n\n")
        world.run()
        ends = [message.get("End") for message in world.heard if "End" in message.fields]
        assert ends == ["Failed"]
        assert len(world.mediator.mediator.context.sessions) == 0

    def test_terminated_on_its_way(self) -> None:
        """A session that ends while it is on its way is given up."""
        world = World()
        ib, _ = a_callee(world)
        wanted = ConnectBackRequest(an_expected_call(), HOST, WAITS)
        ib.dial_back(wanted)
        ib.session_terminated(SESSION)
        (dial,) = [one for one in world.clock.dials if one.port == WAITS]
        assert dial.over
        assert len(ib._pending) == 0

    def test_the_terminal_stops(self) -> None:
        """A dial that is under way is given up."""
        world = World()
        ib, _ = a_callee(world)
        ib.dial_back(ConnectBackRequest(an_expected_call(), HOST, WAITS))
        stopped = Outcome(ib.stopService())
        world.run()
        assert stopped.done
        assert WAITS not in [port for _, port in world.dialled]


class Goes(Events):
    """What is told of connect-back, and whether it comes.

    :ivar asked_of: gives whether it does
    """

    def __init__(self, comes: Callable[[], Awaitable[bool]]) -> None:
        super().__init__()
        self.asked_of = comes

    async def admits_dial_back(self, client: MediatorClient, request: ConnectBackRequest) -> bool:
        """What the test says."""
        self.heard.append(("comes", request.call.caller, request.call.password, request.host))
        return await self.asked_of()


ASKED = (
    f"REQUEST\nCaller ID:Ic\nPassword:{SECRET}\nAddress:192.0.2.7\nPort:4000\n"
    f"Session:{SESSION}\nEncrypt Key:{KEY}\nExpires:3600\nReply Password:{REPLY_PASSWORD}\n"
)


class LineTests:
    """What is asked and answered over the line."""

    def test_it_answers_first(self) -> None:
        """Whether it comes is said before it goes (D7)."""
        decided: Deferred[bool] = Deferred()
        goes = Goes(lambda: decided)
        wire = Wire(events=goes)
        wire.mediator.type(f"{ASKED}Transaction:9\n\n")
        assert goes.heard == [("comes", "Ic", SECRET, "192.0.2.7")]
        assert wire.mediator.text() == ""
        decided.callback(True)
        settle(wire.clock)
        said = "NOTIFY\nRequest Accepted.\nTransaction:9\nCode:200\n\n"
        assert wire.mediator.text() == said
        assert [what for what, *_ in goes.heard] == ["comes", "dial back"]

    def test_it_does_not_come(self) -> None:
        """It says so, and goes nowhere."""
        goes = Goes(lambda: succeed(False))
        wire = Wire(events=goes)
        wire.mediator.type(f"{ASKED}\n")
        assert wire.mediator.text() == "NOTIFY\nPermission Denied.\n\n"
        assert [what for what, *_ in goes.heard] == ["comes"]

    @pytest.mark.parametrize("missing", ["Password", "Address", "Port", "Session", "Encrypt Key"])
    def test_half_a_request(self, missing: str) -> None:
        """What leaves anything out is denied, and nobody is asked (I3)."""
        goes = Goes(lambda: succeed(True))
        wire = Wire(events=goes)
        lines = [line for line in ASKED.splitlines() if line.partition(":")[0] != missing]
        wire.mediator.type("\n".join([*lines, "", ""]))
        assert wire.mediator.text() == "NOTIFY\nPermission Denied.\n\n"
        assert goes.heard == []

    def test_nobody_decides(self) -> None:
        """Who never decides has not said yes."""
        never: Deferred[bool] = Deferred()
        wire = Wire(events=Goes(lambda: never))
        wire.mediator.type(f"{ASKED}\n")
        advance(wire.clock, CONSENT_TIMEOUT)
        assert wire.mediator.text() == "NOTIFY\nPermission Denied.\n\n"
        assert wire.clock.getDelayedCalls() == []

    def test_yes_to_nobody(self) -> None:
        """Who says yes when the line is gone goes nowhere: it can't be told (I26)."""
        late: Deferred[bool] = Deferred(lambda given_up: given_up.callback(True))
        goes = Goes(lambda: late)
        wire = Wire(events=goes)
        wire.mediator.type(f"{ASKED}\n")
        wire.mediator.vanish()
        assert late.called
        assert [what for what, *_ in goes.heard] == ["comes", "lost"]

    def test_a_line_that_only_asks(self) -> None:
        """Over the line of a command nobody comes to anybody."""
        wire = Wire(events=None)
        wire.mediator.type(f"{ASKED}\n")
        assert wire.mediator.text() == "NOTIFY\nPermission Denied.\n\n"

    def test_the_question(self) -> None:
        """The caller's own question (fig. 7c)."""
        wire = Wire()
        outcome, asked = wire.ask(wire.client.connect_back("Ib", SECRET, "127.0.0.1", WAITS))
        assert asked == Message(
            REQUEST,
            Identifier=CALLER,
            Callee="Ib",
            Password=SECRET,
            Address="127.0.0.1",
            Port=str(WAITS),
            Transaction="1",
        )
        wire.mediator.type("NOTIFY\nPermission Denied.\nTransaction:1\nCode:403\n\n")
        assert isinstance(outcome.error, PermissionDenied)

    def test_half_an_answer(self) -> None:
        """What a callee can't be known by is no answer (A23, I3)."""
        wire = Wire()
        outcome, _ = wire.ask(wire.client.connect_back("Ib", SECRET, "127.0.0.1", WAITS))
        told = f"Session:{SESSION}\nEncrypt Key:{KEY}\nTransaction:1\nCode:200\n\n"
        wire.mediator.type(f"NOTIFY\nRequest Accepted.\n{told}")
        assert isinstance(outcome.error, BadRequest)
        assert "Reply Password" in outcome.error.cause

    def test_in_clear_text(self) -> None:
        """The call password does not leave this machine in clear text (I25)."""
        world = World()
        a_callee(world)
        caller = world.terminal("Ia")
        line: Any = caller._registration.client
        line.stream.transport.peer = type(line.stream.transport.peer)("TCP", "192.0.2.1", 1201)
        outcome = ask(world, caller)
        assert isinstance(outcome.error, CannotLogIn)
        assert not [message for message in world.heard if message.verb == REQUEST]


class PasswordTests:
    """The call password itself."""

    def test_knows(self) -> None:
        """Equal or not, byte for byte, whatever the length; never more (A24)."""
        admits = knows("pässword")
        shown = ("pässword", "pässwor", "pässword ", "Pässword", "", "x" * 512)
        assert [admits("Ia", one) for one in shown] == [True, False, False, False, False, False]

    def test_read_each_time(self) -> None:
        """One that is changed is in force at once."""
        current = ["first"]
        admits = knows(lambda: current[0])
        assert admits("Ia", "first")
        current[0] = "second"
        assert not admits("Ia", "first")
        assert admits("Ia", "second")

    def test_in_no_repr(self) -> None:
        """Nothing that is passed about shows it (I18)."""
        wanted = ConnectBackRequest(an_expected_call(), HOST, WAITS)
        assert PASSWORD not in repr(wanted)
        assert PASSWORD not in repr(wanted.call)
