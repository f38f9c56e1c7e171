"""Connect-back between terminals: who is called back, where to, and what a stranger learns."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from ipaddress import ip_network
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.error import CannotListenError

from broker.messages.errors import BadRequest, PermissionDenied, Refused
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

SECRET = "open sesame"
#: Where the caller waits, and where the callee takes ordinary calls.
WAITS = 4000
TAKES = 1203


class BackScene:
    """Ia, which knows the call password of Ib, and Ib, which permits nobody.

    :ivar handler: takes Ib's calls
    """

    def __init__(
        self, listens: int | None = None, world: World | None = None, **callee: Any
    ) -> None:
        """
        :param listens: where Ia takes calls itself, if it does
        """
        self.world = world or World()
        self.handler = Handler(Echo)
        options = {"handler": self.handler, "call_password": SECRET, "policy": "Password"}
        self.ib = self.world.terminal("Ib", TAKES, **{**options, **callee})
        self.ia = self.world.terminal("Ia", listens)

    def ask(
        self,
        maker: Any = None,
        password: str = SECRET,
        caller: Terminal | None = None,
        **options: Any,
    ) -> Outcome:
        """Ask Ib to connect, by default to a listener that is opened for the call."""
        options.setdefault("listen", Listener(self.world, WAITS))
        maker = maker or Maker(HalfCloseable)
        called = (caller or self.ia).call_back("Ib", maker, password=password, **options)
        outcome = Outcome(called)
        self.world.run()
        return outcome

    def opens(self, **options: Any) -> Any:
        """A call that opens: the caller's protocol."""
        outcome = self.ask(**options)
        assert outcome.error is None
        assert outcome.value is not None
        return outcome.value

    def closes(self, protocol: Any) -> None:
        """The caller ends its call."""
        protocol.transport.loseConnection()
        self.world.run()

    def denied(self, outcome: Outcome, port: int = WAITS) -> None:
        """It is refused, in the mediator's own time, and Ib has dialled nobody."""
        assert not outcome.done
        self.world.advance(5)
        assert isinstance(outcome.error, PermissionDenied)
        assert outcome.error.cause == ""
        assert port not in self.dialled
        assert not self.world.listens(port)

    @property
    def dialled(self) -> list[int]:
        """The ports that were dialled."""
        return [port for _, port in self.world.dialled]

    @property
    def ends(self) -> list[str | None]:
        """What was reported as the ends of sessions."""
        return [message.get("End") for message in self.world.heard if "End" in message.fields]

    @property
    def sessions(self) -> int:
        """How many the mediator knows."""
        return len(self.world.mediator.mediator.context.sessions)


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

    def test_a_call_and_its_end(self) -> None:
        """The callee dials, the caller speaks first, both know the other; the call ends as any
        other, is reported, and its listener is closed with it (D9).
        """
        scene = BackScene()
        protocol = scene.opens()
        assert scene.dialled[-1] == WAITS
        protocol.transport.write(b"hello")
        scene.world.run()
        assert protocol.received == b"hello"
        ((who, _, served),) = scene.handler.calls
        assert (who, served.transport.peer, protocol.transport.peer) == ("Ia", "Ia", "Ib")
        assert scene.world.listens(WAITS)
        scene.closes(protocol)
        assert not scene.world.listens(WAITS)
        assert scene.ends == ["Completed", "Completed"]
        assert scene.sessions == 0

    def test_at_the_direct_listener(self) -> None:
        """A terminal that listens anyway needs no other listener, and keeps its own."""
        scene = BackScene(WAITS)
        scene.closes(scene.opens(listen=None))
        assert scene.world.listens(WAITS)

    def test_two_at_once(self) -> None:
        """Each callee that connects is known by its session, at one and the same listener."""
        scene = BackScene(WAITS)
        second = Handler(Plain)
        options: Any = {"handler": second, "call_password": "other", "policy": "Password"}
        scene.world.terminal("Ic", 1300, **options)
        outcomes = [
            Outcome(scene.ia.call_back(name, Maker(HalfCloseable), password=password))
            for name, password in (("Ib", SECRET), ("Ic", "other"))
        ]
        scene.world.run()
        handlers = (scene.handler, second)
        for name, outcome, handler in zip(("Ib", "Ic"), outcomes, handlers, strict=True):
            assert outcome.value.transport.peer == name
            outcome.value.transport.write(name.encode())
            scene.world.run()
            assert handler.calls[0][2].received == name.encode()

    def test_one_session_a_call(self) -> None:
        """What is granted is spent by the call, and by nothing after it (I7)."""
        scene = BackScene()
        session = scene.opens().transport.session
        assert scene.ib._pending.find(session, 0) is None
        late = connect(scene.world.factory_at(WAITS), scene.world.clock, port=WAITS)
        late.send(Message(NOTIFY, Session=session))
        assert (late.closed, late.bytes()) == (True, b"")

    def test_where_it_is_from_outside(self) -> None:
        """The callee is told the address that the caller gives (D3)."""
        scene = BackScene()
        outcome = scene.ask(listen=Listener(scene.world, 0), address=("127.0.0.1", WAITS))
        assert scene.dialled[-1] == WAITS
        assert str(outcome.error) == "Ib could not connect to us"  # nothing listens there

    def test_in_vain(self) -> None:
        """That the callee could not connect is told at once, and all is closed (D7, C12)."""
        scene, opener = BackScene(), Opener(outside=(HOST, 4444))
        outcome = scene.ask(opener=opener)
        assert scene.dialled[-1] == 4444
        assert isinstance(outcome.error, CallFailed)
        assert str(outcome.error) == "Ib could not connect to us"
        assert (opener.opened, opener.closed) == ([], 1)
        assert not scene.world.listens(WAITS)
        assert scene.sessions == 0

    def test_a_port_opened_for_it(self) -> None:
        """A port is opened in the router, told, and closed with the call (D9): by the terminal's
        own opener where no other is named, and by none where there is an address.
        """
        scene, own, other = BackScene(), Opener(), Opener()
        caller = scene.world.terminal("Ia", opener=own)
        protocol = scene.opens(caller=caller, opener=other)
        assert other.opened == [WAITS]
        scene.closes(protocol)
        assert (other.opened, other.closed, own.asked) == ([], 1, 0)
        scene.closes(scene.opens(caller=caller))
        assert own.closed == 1
        scene.closes(scene.opens(caller=caller, address=(HOST, WAITS)))
        assert own.closed == 1

    def test_reached_by_its_password_alone(self) -> None:
        """A caller that its list accepts still can't call it otherwise."""
        scene = BackScene(accept=["Ia"])
        outcome = Outcome(scene.ia.call("Ib", Maker()))
        scene.world.run()
        assert isinstance(outcome.error, PermissionDenied)

    def test_an_application_decides(self) -> None:
        """The application may look at who shows what, and take its time."""
        gate = Gate()
        scene = BackScene(call_password=gate)
        outcome = scene.ask(password="anything")
        scene.world.advance(2)
        assert gate.shown == [("Ia", "anything")]
        assert not outcome.done
        gate.decided.callback(True)
        scene.world.run()
        assert outcome.value is not None


def busy() -> Any:
    """A load that takes no call."""
    return SimpleNamespace(acceptable=lambda: False)


def fails(caller: str, password: str) -> bool:
    """An application that fails to decide."""
    raise RuntimeError("the application is wrong")


class RefusedTests:
    """The callee decides; where it doesn't connect it opens nothing (D7)."""

    @pytest.mark.parametrize(
        "callee",
        [
            {"call_password": None},  # it is called back by nobody, whatever the mediator says (I3)
            {"policy": "List"},  # a password does not help where the list decides
            {"load": busy()},  # B1
            *({"call_password": lambda *_, said=said: succeed(said)} for said in (1, "yes", None)),
        ],
    )
    def test_not_admitted(self, callee: dict[str, Any]) -> None:
        """The right password is denied all the same; only ``True`` admits anybody (I3)."""
        scene = BackScene(**callee)
        scene.denied(scene.ask())

    def test_a_wrong_password(self) -> None:
        """Nothing is opened, and the caller learns only that it is denied."""
        scene = BackScene()
        with the_log() as lines:
            scene.denied(scene.ask(password="guess"))
        assert any("Ia showed a wrong call password" in line for line in lines)
        assert not any("guess" in line or SECRET in line for line in lines)

    def test_in_a_call(self) -> None:
        """One that takes one call at a time, and is in one, does not connect (A25)."""
        scene = BackScene(one_at_a_time=True)
        scene.opens(caller=scene.world.terminal("Ic"))
        scene.denied(scene.ask(listen=Listener(scene.world, 4001)), 4001)

    def test_an_application_that_fails(self) -> None:
        """An exception is a refusal (I3), and is logged."""
        scene = BackScene(call_password=fails)
        with the_log() as lines:
            scene.denied(scene.ask())
        assert any("the application is wrong" in line for line in lines)

    @pytest.mark.parametrize("how", ["too late", "line lost"])
    def test_while_it_decides(self, how: str) -> None:
        """A callee does not connect once the mediator has given up, or is lost (I26)."""
        gate = Gate()
        scene = BackScene(call_password=gate)
        outcome = scene.ask()
        if how == "too late":
            scene.denied(outcome)
            gate.decided.callback(True)
        else:
            scene.world.lose_line("Ib")
            assert gate.decided.called  # given up
        scene.world.run()
        assert WAITS not in scene.dialled

    @pytest.mark.parametrize(
        ("options", "error", "why"),
        [
            (
                {"fails": CannotListenError("127.0.0.1", WAITS, OSError("in use"))},
                CallFailed,
                "there is nowhere to wait for the callee",
            ),
            ({"listen": None}, ValueError, ""),  # a mistake of the application's
            ({"opener": Opener(fails=True)}, CallFailed, "no router answers"),
            # What can be no password is never sent, and smuggles in no line.
            *(({"password": text}, ValueError, "") for text in ("", "a\nCallee:Ic", "x" * 513)),
        ],
    )
    def test_nowhere_to_wait(self, options: dict[str, Any], error: type, why: str) -> None:
        """A caller with nowhere to wait, or no password, asks nobody, and leaves nothing open."""
        scene, options = BackScene(), dict(options)
        if "fails" in options:
            options["listen"] = Listener(scene.world, fails=options.pop("fails"))
        outcome = scene.ask(**options)
        assert isinstance(outcome.error, error)
        assert why in str(outcome.error)
        assert not [message for message in scene.world.heard if message.verb == REQUEST]
        assert not scene.world.listens(WAITS)


EVERYWHERE = {"call_back_to": [ip_network("0.0.0.0/0"), ip_network("::/0")]}


class AddressTests:
    """Where a callee lets itself be sent (D7)."""

    def asks(
        self, host: str, to: int = WAITS, world: World | None = None, **callee: Any
    ) -> tuple[BackScene, bool]:
        """The mediator tells Ib to connect there; whether Ib says that it does."""
        scene = BackScene(world=world, **callee)
        scene.world.run()
        answers: list[Message] = []
        peer: Any = scene.world.line_of("Ib").b.protocol
        fields = {
            "Caller ID": "Ia",
            "Password": SECRET,
            "Address": host,
            "Port": str(to),
            "Session": SESSION,
            "Encrypt Key": KEY,
            "Reply Password": REPLY_PASSWORD,
        }
        peer.receiver.ask(Message.of(REQUEST, fields)).addCallback(answers.append)
        scene.world.run()
        (answer,) = answers
        return scene, answer.statement == REQUEST_ACCEPTED

    @pytest.mark.parametrize("host", ["203.0.114.9", "2a00:1450::5", "127.0.0.1", "::1"])
    def test_dialled(self, host: str) -> None:
        """The Internet, and where its mediator is too."""
        assert self.asks(host)[1]

    @pytest.mark.parametrize(
        "host",
        ["192.168.1.9", "10.0.0.1", "169.254.1.1", "www.example.com", "64:ff9b::7f00:1"],
    )
    def test_not_dialled(self, host: str) -> None:
        """Neither the networks around it, nor what must be looked up."""
        scene, comes = self.asks(host)
        assert not comes
        assert WAITS not in scene.dialled

    @pytest.mark.parametrize("host", ["0.0.0.0", "224.0.0.1", "255.255.255.255", "::", "fe80::1"])
    @pytest.mark.parametrize("callee", [{}, EVERYWHERE])
    def test_not_even_then(self, host: str, callee: dict[str, Any]) -> None:
        """What is no terminal's address is not dialled, whatever networks were named (I12)."""
        assert not self.asks(host, **callee)[1]

    def test_as_its_operator_allows(self) -> None:
        """A network may be named."""
        assert self.asks("10.1.2.3", call_back_to=[ip_network("10.0.0.0/8")])[1]

    @pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1"])
    def test_itself(self, host: str) -> None:
        """Its own listener is not dialled, by whatever address."""
        assert not self.asks(host, TAKES)[1]

    @pytest.mark.parametrize(("port", "comes"), [(4040, False), (TAKES, False), (4041, True)])
    def test_itself_by_its_registered_address(self, port: int, comes: bool) -> None:
        """Nor by the address that it has registered."""
        at = "203.0.114.9"
        world = World(allowed_networks=[ip_network("203.0.114.0/24")])
        assert self.asks(at, port, world, address=at, port=4040)[1] is comes

    def test_so_many_at_a_time(self) -> None:
        """Dials that get nowhere are bounded (I15)."""
        scene = BackScene()
        for n in range(DIALS_MOST):
            scene.ib._dial_back._dialling[f"S{n}"] = [Deferred()]
        scene.denied(scene.ask())
        scene.ib._dial_back._dialling.clear()


class Waiting:
    """A caller whose mediator has said that Ib connects; a test plays whoever does."""

    def __init__(self, *, granted: bool = True, **options: Any) -> None:
        self.world = World()
        self.caller = self.world.terminal("Ia")
        self.maker = Maker(HalfCloseable)
        listen = Listener(self.world, WAITS)
        called = self.caller.call_back("Ib", self.maker, password=SECRET, listen=listen, **options)
        self.outcome = Outcome(called)
        self.world.run()
        self.mediator: Any = self.world.line_of("Ia").b.protocol
        if granted:
            self.grant()

    def grant(self) -> None:
        """The mediator says yes."""
        asked = [message for message in self.world.heard if message.verb == REQUEST]
        fields = {
            "": REQUEST_ACCEPTED,
            "Session": SESSION,
            "Encrypt Key": KEY,
            "Callee": CALLEE,
            "Expires": "3600",
            "Reply Password": REPLY_PASSWORD,
            "Transaction": str(asked[-1].get("Transaction")),
            "Code": "200",
        }
        self.mediator.send(Message.of(NOTIFY, fields))
        self.world.run()

    def connects(self, sent: Message | bytes | None, host: str = HOST) -> Client:
        """A peer connects, and sends something."""
        factory = self.world.factory_at(WAITS)
        client = connect(factory, self.world.clock, port=WAITS, peer_host=host)
        if sent is not None:
            client.send(sent)
        self.world.run()
        return client

    def arrives(self, session: str = SESSION, host: str = HOST) -> Client:
        """A peer connects, and says for which session."""
        return self.connects(Message(NOTIFY, Session=session), host)

    def shake(self, client: Client, **key: str) -> None:
        """It reads the REQUEST, and answers as the callee does."""
        (head,), body = parse_all(client.bytes())
        assert head == Message(REQUEST, Session=SESSION, Length=len(body))
        handshake = a_handshake(initiator=False)
        assert handshake.read(body) == Message(REQUEST, Identifier=CALLER, Password=SECRET)
        client.send(framed(SESSION, handshake.write(an_answer(**key)), verb=NOTIFY))
        self.world.run()

    @property
    def closed(self) -> bool:
        """Whether what was opened for the call is closed."""
        return not self.world.listens(WAITS)


class WaitTests:
    """The caller waits for the callee, and for nobody else."""

    def test_it_connects(self) -> None:
        """The caller speaks first, though it was the callee that dialled."""
        wait = Waiting()
        wait.shake(wait.arrives())
        assert wait.outcome.value is wait.maker.made[0]

    @pytest.mark.parametrize(
        "sent",
        [
            None,  # a while
            Message(NOTIFY, Session="S0"),
            Message.of(NOTIFY, {"Session": SESSION, "": "Terminate."}),
            Message(REQUEST, Session=SESSION),
            Message(NOTIFY, Session=SESSION, Length=4),
            Message(NOTIFY, REQUEST_ACCEPTED),
        ],
    )
    def test_it_sends_something_else(self, sent: Message | None) -> None:
        """Nothing, another session, or another message: closed without a byte."""
        wait = Waiting()
        client = wait.connects(sent)
        if sent is None:
            wait.world.advance(HANDSHAKE_TIMEOUT + 1)
        assert (client.closed, client.bytes()) == (True, b"")
        assert not wait.outcome.done

    def test_it_sends_more_than_it_may(self) -> None:
        """Before the caller has spoken there is nothing more to say."""
        wait = Waiting()
        assert wait.connects(Message(NOTIFY, Session=SESSION).encode() * 2).closed
        assert not wait.outcome.done

    def test_a_stranger_does_not_end_it(self) -> None:
        """A peer that has seen the session and lacks the key learns nothing; the callee comes."""
        wait = Waiting()
        stranger = wait.arrives()
        sent = stranger.bytes()
        assert SECRET.encode() not in sent
        assert b"Identifier" not in sent
        stranger.send(framed(SESSION, bytes(100), verb=NOTIFY))
        wait.world.run()
        assert stranger.closed
        assert not wait.outcome.done
        wait.shake(wait.arrives())
        assert wait.outcome.value is not None

    def test_reply_password(self) -> None:
        """The reply password counts too (A23)."""
        wait = Waiting()
        wait.shake(wait.arrives(), password="another")
        assert not wait.outcome.done
        wait.world.advance(UNSPENT_SECONDS)
        assert "could not prove that it is Ib" in str(wait.outcome.error)

    def test_who_is_counted(self) -> None:
        """Strangers count against their address while they are connected; the callee does not."""
        wait = Waiting()
        listener = wait.caller._listener
        sources = listener.hub.sources._counts
        stranger = wait.arrives(host="203.0.114.7")
        assert sources == {"203.0.114.7": (1, 1)}
        stranger.vanish()
        callee = wait.arrives(host="203.0.114.8")
        wait.shake(callee)
        assert sources == {"203.0.114.8": (0, 1)}
        assert len(listener._unproven) == 0
        callee.vanish()
        assert sources == {}

    def test_several_at_a_time(self) -> None:
        """Four handshakes may be under way in a session; one that proves it closes the others."""
        wait = Waiting()
        clients = [wait.arrives() for _ in range(HANDSHAKES + 1)]
        assert [client.closed for client in clients] == [False] * HANDSHAKES + [True]
        clients[0].vanish()
        wait.world.run()
        another = wait.arrives()
        assert not another.closed
        wait.shake(another)
        assert [client.closed for client in clients[1:]] == [True] * HANDSHAKES
        assert not another.closed

    def test_it_does_not_come(self) -> None:
        """After 30 s it is not waited for, and all is closed."""
        wait = Waiting()
        wait.world.advance(UNSPENT_SECONDS - 0.1)
        assert not wait.outcome.done
        wait.world.advance(0.1)
        assert str(wait.outcome.error) == "Ib did not connect back in time"
        assert wait.closed

    def test_it_comes_before_the_answer(self) -> None:
        """A callee that overtakes the mediator's answer is held, and silent till then; those who
        were held and left are not spoken to, nor in the way.
        """
        wait = Waiting(granted=False)
        for _ in range(HANDSHAKES):
            wait.arrives().vanish()
        early, other = wait.arrives(), wait.arrives("S7")
        assert (early.closed, early.bytes()) == (False, b"")
        wait.grant()
        assert (other.closed, other.bytes()) == (True, b"")  # nothing is asked now
        assert not wait.outcome.done
        wait.shake(early)
        assert wait.outcome.value is not None

    def test_too_early(self) -> None:
        """It is held for two seconds, and so is a bounded number of others."""
        wait = Waiting(granted=False)
        early = [wait.arrives(f"S{n}") for n in range(HELD_MOST + 1)]
        assert [client.closed for client in early] == [False] * HELD_MOST + [True]
        wait.world.advance(HOLD_SECONDS)
        assert all(client.closed and not client.bytes() for client in early)

    def test_terminated(self) -> None:
        """The mediator may end the session before the callee comes (I2)."""
        wait = Waiting()
        wait.mediator.send(Message.of(NOTIFY, {"Session": SESSION, "": "Terminate."}))
        wait.world.run()
        assert str(wait.outcome.error) == "the mediator has ended the session"
        assert wait.closed

    @pytest.mark.parametrize("granted", [False, True])
    def test_given_up(self, granted: bool) -> None:
        """An application may give up at any time; nothing stays open."""
        wait = Waiting(granted=granted)
        wait.outcome.deferred.cancel()
        wait.world.run()
        assert isinstance(wait.outcome.error, CancelledError)
        assert wait.closed

    def test_the_terminal_stops(self) -> None:
        """So does the wait, with what was opened for it, and no timer is left."""
        opener = Opener()
        wait = Waiting(opener=opener)
        wait.arrives()
        stopped = Outcome(wait.caller.stopService())
        wait.world.run()
        assert stopped.done
        assert wait.outcome.error is not None
        assert wait.closed
        assert opener.closed == 1

    def test_stopping_waits(self) -> None:
        """It has stopped when what was opened for the call is closed, and not before."""
        closed: Deferred[None] = Deferred()

        class Slow(Opener):
            async def close(self, port: int) -> None:
                await closed

        wait = Waiting(opener=Slow())
        wait.shake(wait.arrives())
        stopped = Outcome(wait.caller.stopService())
        wait.world.advance(20)
        assert not stopped.done
        closed.callback(None)
        wait.world.run()
        assert stopped.done


ASKS = f"REQUEST\nCallee:Ib\nPassword:{SECRET}\nAddress:{HOST}\nPort:{WAITS}\n\n"


class ComingTests:
    """The callee dials where it was told; what it serves there is in ``test_dial_back``."""

    def comes(self) -> tuple[BackScene, Client, str]:
        """Ib connects to a caller that a test plays: the connection, and the session."""
        scene = BackScene()
        world = scene.world
        client = world.client()
        client.type("REGISTER\nIdentifier:Ix\n\n")
        client.text()
        client.type(ASKS)
        met: list[Client] = []
        for _ in range(20):
            settle(world.clock)
            dials = [it for it in world.clock.dials if not it.over and it.port == WAITS]
            met += [dial.accept() for dial in dials]
            if not [pair for pair in list(world.pairs) if pair.step()] and not dials:
                break
        (connected,) = met
        (granted,) = client.received()
        return scene, connected, str(granted.get("Session"))

    def test_what_it_says(self) -> None:
        """For which session it connects, and nothing else: neither who it is nor to whom."""
        _, met, session = self.comes()
        assert met.text() == f"NOTIFY\nSession:{session}\n\n"

    def test_nobody_is_there(self) -> None:
        """It says so to the mediator, which forgets the session."""
        scene = BackScene()
        client = scene.world.client()
        client.type(f"REGISTER\nIdentifier:Ix\n\n{ASKS}")
        scene.world.run()
        assert scene.ends == ["Failed"]
        assert scene.sessions == 0

    def test_given_up_on_its_way(self) -> None:
        """A dial is given up when its session ends, or the terminal stops."""
        for stops in (False, True):
            scene = BackScene()
            scene.ib.dial_back(ConnectBackRequest(an_expected_call(), HOST, WAITS))
            if stops:
                stopped = Outcome(scene.ib.stopService())
                scene.world.run()
                assert stopped.done
            else:
                scene.ib.session_terminated(SESSION)
            (dial,) = [one for one in scene.world.clock.dials if one.port == WAITS]
            assert dial.over
            assert WAITS not in scene.dialled
            assert stops or len(scene.ib._pending) == 0


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


class MediatorTests:
    """What is asked and answered over the connection to the mediator."""

    def test_it_answers_first(self) -> None:
        """Whether it connects is said before it dials (D7)."""
        decided: Deferred[bool] = Deferred()
        goes = Goes(lambda: decided)
        wire = Wire(events=goes)
        wire.mediator.type(f"{ASKED}Transaction:9\n\n")
        assert goes.heard == [("comes", "Ic", SECRET, "192.0.2.7")]
        assert wire.mediator.text() == ""
        decided.callback(True)
        settle(wire.clock)
        assert wire.mediator.text() == "NOTIFY\nRequest Accepted.\nTransaction:9\nCode:200\n\n"
        assert [what for what, *_ in goes.heard] == ["comes", "dial back"]

    @pytest.mark.parametrize(
        "missing", [None, "Password", "Address", "Port", "Session", "Encrypt Key"]
    )
    def test_it_does_not_connect(self, missing: str | None) -> None:
        """It says so, and dials nobody; a request that lacks anything asks nobody (I3)."""
        goes = Goes(lambda: succeed(missing is not None))
        wire = Wire(events=goes)
        lines = [line for line in ASKED.splitlines() if line.partition(":")[0] != missing]
        wire.mediator.type("\n".join([*lines, "", ""]))
        assert wire.mediator.text() == "NOTIFY\nPermission Denied.\n\n"
        assert [what for what, *_ in goes.heard] == ([] if missing else ["comes"])

    def test_nobody_decides(self) -> None:
        """An application that never decides has not said yes."""
        wire = Wire(events=Goes(Deferred))
        wire.mediator.type(f"{ASKED}\n")
        advance(wire.clock, CONSENT_TIMEOUT)
        assert wire.mediator.text() == "NOTIFY\nPermission Denied.\n\n"
        assert wire.clock.getDelayedCalls() == []

    def test_yes_to_nobody(self) -> None:
        """A yes when the connection is gone dials nobody: the mediator can't be told (I26)."""
        late: Deferred[bool] = Deferred(lambda given_up: given_up.callback(True))
        goes = Goes(lambda: late)
        wire = Wire(events=goes)
        wire.mediator.type(f"{ASKED}\n")
        wire.mediator.vanish()
        assert late.called
        assert [what for what, *_ in goes.heard] == ["comes", "lost"]

    def test_a_connection_that_only_asks(self) -> None:
        """A command dials nobody back."""
        wire = Wire(events=None)
        wire.mediator.type(f"{ASKED}\n")
        assert wire.mediator.text() == "NOTIFY\nPermission Denied.\n\n"

    @pytest.mark.parametrize(
        ("answer", "error", "cause"),
        [
            ("Permission Denied.\nTransaction:1\nCode:403", PermissionDenied, ""),
            (
                f"Request Accepted.\nSession:{SESSION}\nEncrypt Key:{KEY}\nTransaction:1\nCode:200",
                BadRequest,
                "Reply Password",
            ),
        ],
    )
    def test_the_request(self, answer: str, error: type[Refused], cause: str) -> None:
        """The caller's own request (fig. 7c); an answer that lacks anything is none (A23, I3)."""
        wire = Wire()
        outcome, asked = wire.ask(wire.client.connect_back("Ib", SECRET, "127.0.0.1", WAITS))
        fields = {"Callee": "Ib", "Password": SECRET, "Address": "127.0.0.1", "Port": str(WAITS)}
        assert asked == Message(REQUEST, Identifier=CALLER, **fields, Transaction="1")
        wire.mediator.type(f"NOTIFY\n{answer}\n\n")
        assert isinstance(outcome.error, error)
        assert cause in outcome.error.cause

    def test_in_clear_text(self) -> None:
        """The call password does not leave this machine in clear text (I25)."""
        scene = BackScene()
        client: Any = scene.ia._registration.client
        peer = client.stream.transport.peer
        client.stream.transport.peer = type(peer)("TCP", "192.0.2.1", 1201)
        assert isinstance(scene.ask().error, CannotLogIn)
        assert not [message for message in scene.world.heard if message.verb == REQUEST]


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
