"""Connect-back between terminals: who is called back, where to, and what a stranger learns."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from ipaddress import ip_network
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
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
from tests.support.transport import connect
from tests.terminal.calls.scene import Calling
from tests.terminal.keys import (
    ANNOUNCED,
    CALLER,
    KEY,
    PASSWORD,
    REPLY_PASSWORD,
    SESSION,
    an_answer,
    an_expected_call,
    framed,
)
from tests.terminal.network import HOST, Listener, Outcome, World
from tests.terminal.peers import Callee, Opener
from tests.terminal.scene import Events, Wire
from tests.terminal.speakers import Echo, HalfCloseable, Handler, Maker, Plain

SECRET = "open sesame"
#: Where the caller waits, and where the callee takes ordinary calls.
WAITS = 4000
TAKES = 1203


class BackScene:
    """Ia, which knows the call password of Ib, and Ib, which permits no caller.

    :ivar handler: takes Ib's calls
    """

    def __init__(self, listens: int | None = None, **callee: Any) -> None:
        """
        :param listens: where Ia takes calls itself, if it does
        """
        self.world = World(**callee.pop("mediator", {}))
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
        """It is refused, in the mediator's own time, and Ib has not dialled."""
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
    """A caller that the callee does not permit, and that knows its call password (D3–D8, D11)."""

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

    def test_not_connected(self) -> None:
        """That the callee could not connect is told at once, and all is closed (D7, C12)."""
        scene, opener = BackScene(), Opener((HOST, 4444))
        outcome = scene.ask(opener=opener)
        assert scene.dialled[-1] == 4444
        assert isinstance(outcome.error, CallFailed)
        assert str(outcome.error) == "Ib could not connect to us"
        assert (opener.opened, opener.closed) == ([], 1)
        assert not scene.world.listens(WAITS)
        assert (scene.ends, scene.sessions) == (["Failed"], 0)

    @pytest.mark.parametrize("stands", [False, True])
    def test_the_terminal_stops(self, stands: bool) -> None:
        """The wait, or the call, ends; it has stopped when what was opened is closed, and not
        before.
        """
        closed: Deferred[None] = Deferred()

        class Slow(Opener):
            async def close(self, port: int) -> None:
                await closed

        scene = BackScene()
        if not stands:
            scene.world.silent.add(WAITS)
        outcome = scene.ask(opener=Slow())
        assert outcome.done is stands
        stopped = Outcome(scene.ia.stopService())
        scene.world.advance(20)
        assert not stopped.done
        closed.callback(None)
        scene.world.run()
        assert (outcome.error is not None) is not stands
        assert not scene.world.listens(WAITS)
        assert stopped.done

    def test_a_port_opened_for_it(self) -> None:
        """A port is opened in the router, told, and closed with the call (D9): by the terminal's
        own opener where no other is named, and by none where there is an address.
        """
        scene, own, other = BackScene(), Opener(), Opener()
        caller = scene.world.terminal("Ia", opener=own)
        protocol = scene.opens(caller=caller, opener=other)
        assert other.opened == [WAITS]
        scene.closes(protocol)
        assert (other.opened, other.closed, own.asked) == ([], 1, [])
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
            {"call_password": None},  # it calls nothing back, whatever the mediator says (I3)
            {"policy": "List"},  # a password does not help where the list decides
            {"load": busy()},  # B1
            *({"call_password": lambda *_, said=said: succeed(said)} for said in (1, "yes", None)),
        ],
    )
    def test_not_admitted(self, callee: dict[str, Any]) -> None:
        """The right password is denied too; only ``True`` admits a caller (I3)."""
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
            ({"opener": Opener("no router answers")}, CallFailed, "no router answers"),
            # What can be no password is never sent, and smuggles in no line.
            *(({"password": text}, ValueError, "") for text in ("", "a\nCallee:Ic", "x" * 513)),
        ],
    )
    def test_nowhere_to_wait(self, options: dict[str, Any], error: type, why: str) -> None:
        """A caller with nowhere to wait, or no password, asks nothing, and leaves nothing open."""
        scene, options = BackScene(), dict(options)
        if "fails" in options:
            options["listen"] = Listener(scene.world, fails=options.pop("fails"))
        outcome = scene.ask(**options)
        assert isinstance(outcome.error, error)
        assert why in str(outcome.error)
        assert not [message for message in scene.world.heard if message.verb == REQUEST]
        assert not scene.world.listens(WAITS)


EVERYWHERE: dict[str, Any] = {"call_back_to": [ip_network("0.0.0.0/0"), ip_network("::/0")]}
HOME: dict[str, Any] = {
    "address": "203.0.114.9",
    "port": 4040,
    "mediator": {"allowed_networks": [ip_network("203.0.114.0/24")]},
}


class AddressTests:
    """Where a callee lets itself be sent (D7)."""

    @pytest.mark.parametrize(
        ("host", "callee", "comes"),
        [
            # The Internet, and where its mediator is too.
            *((host, {}, True) for host in ("203.0.114.9", "2a00:1450::5", "127.0.0.1", "::1")),
            # Neither the networks around it, nor what must be looked up.
            *((host, {}, False) for host in ("192.168.1.9", "10.0.0.1", "169.254.1.1", "fd00::1")),
            *((host, {}, False) for host in ("64:ff9b::7f00:1", "::ffff:10.0.0.1")),
            ("www.example.com", {}, False),
            # What is no terminal's address, whatever networks were named (I12).
            *(
                (host, callee, False)
                for host in ("0.0.0.0", "224.0.0.1", "255.255.255.255", "::", "fe80::1")
                for callee in ({}, EVERYWHERE)
            ),
            # A network may be named.
            ("10.1.2.3", {"call_back_to": [ip_network("10.0.0.0/8")]}, True),
            # Its own listener is not dialled, by whatever address,
            *((host, {"to": TAKES}, False) for host in ("127.0.0.1", "127.8.8.8", "::1")),
            # nor by the address that it has registered.
            *(
                ("203.0.114.9", {**HOME, "to": to}, comes)
                for to, comes in ((4040, False), (TAKES, False), (4041, True))
            ),
        ],
    )
    def test_dialled(self, host: str, callee: dict[str, Any], comes: bool) -> None:
        """The mediator tells Ib to connect there; it says whether it does."""
        options = dict(callee)
        port = str(options.pop("to", WAITS))
        scene = BackScene(**options)
        answers: list[Message] = []
        peer: Any = scene.world.line_of("Ib").b.protocol
        fields = {**ANNOUNCED, "Password": SECRET, "Address": host, "Port": port}
        peer.receiver.ask(Message.of(REQUEST, fields)).addCallback(answers.append)
        scene.world.run()
        (answer,) = answers
        assert (answer.statement == REQUEST_ACCEPTED) is comes
        assert comes or not scene.dialled[2:]  # it and Ia have dialled their mediator

    def test_so_many_at_a_time(self) -> None:
        """Dials that get nowhere are bounded (I15)."""
        scene = BackScene()
        for n in range(DIALS_MOST):
            scene.ib._dial_back._dialling[f"S{n}"] = [Deferred()]
        scene.denied(scene.ask())
        scene.ib._dial_back._dialling.clear()


class WaitTests:
    """The caller waits for the callee, and for no other."""

    @pytest.mark.parametrize(
        "sent",
        [
            None,  # a while
            Message(NOTIFY, Session="S0"),
            Message.of(NOTIFY, {"Session": SESSION, "": "Terminate."}),
            Message(REQUEST, Session=SESSION),
            Message(NOTIFY, Session=SESSION, Length=4),
            Message(NOTIFY, REQUEST_ACCEPTED),
            # Before the caller has spoken there is nothing more to say.
            Message(NOTIFY, Session=SESSION).encode() * 2,
        ],
    )
    def test_it_sends_something_else(self, sent: Message | bytes | None) -> None:
        """Nothing, another session, or another message: closed without a byte."""
        call = Calling(how="asks").granted()
        client = call.connects(sent or b"")
        if sent is None:
            advance(call.clock, HANDSHAKE_TIMEOUT + 1)
        assert client.closed
        assert isinstance(sent, bytes) or client.bytes() == b""
        assert not call.outcome.done

    @pytest.mark.parametrize("has_key", [False, True])
    def test_a_stranger_does_not_end_it(self, has_key: bool) -> None:
        """A peer that has seen the session and lacks the key, or the reply password, learns nothing
        (A23); the callee comes. Without it the wait ends after 30 s, and the error tells.
        """
        for comes in (True, False):
            call = Calling(how="asks").granted()
            stranger = Callee(call.arrives())
            assert PASSWORD.encode() not in stranger.body
            assert b"Identifier" not in stranger.body
            if has_key:
                stranger.answer(an_answer("another"))
            else:
                stranger.client.send(framed(SESSION, bytes(100), verb=NOTIFY))
            assert stranger.client.closed
            assert not call.outcome.done
            if comes:
                callee = Callee(call.arrives())
                assert callee.head == Message(REQUEST, Session=SESSION, Length=len(callee.body))
                callee.answer(an_answer())
                assert call.outcome.value is call.maker.made[0]
            else:
                advance(call.clock, UNSPENT_SECONDS)
                why = "could not prove that it is Ib" if has_key else "is not it"
                assert why in call.failure
                assert call.at_rest

    def test_who_is_counted(self) -> None:
        """Strangers count against their address while they are connected; the callee does not."""
        call = Calling(how="asks").granted()
        factory: Any = call.network.factory_at(WAITS)
        counts = factory.hub.sources._counts
        stranger = call.arrives(host="203.0.114.7")
        assert counts == {"203.0.114.7": (1, 1)}
        stranger.vanish()
        callee = Callee(call.arrives(host="203.0.114.8")).answer(an_answer())
        assert counts == {"203.0.114.8": (0, 1)}
        callee.client.vanish()
        assert counts == {}

    def test_several_at_a_time(self) -> None:
        """Four handshakes may be under way in a session; one that proves it closes the others."""
        call = Calling(how="asks").granted()
        clients = [call.arrives() for _ in range(HANDSHAKES + 1)]
        assert [client.closed for client in clients] == [False] * HANDSHAKES + [True]
        clients[0].vanish()
        another = Callee(call.arrives())
        assert not another.client.closed
        another.answer(an_answer())
        assert [client.closed for client in clients[1:]] == [True] * HANDSHAKES
        assert not another.client.closed

    def test_it_does_not_come(self) -> None:
        """After 30 s it is not waited for, and all is closed."""
        call = Calling(how="asks").granted()
        advance(call.clock, UNSPENT_SECONDS - 0.1)
        assert not call.outcome.done
        advance(call.clock, 0.1)
        assert call.failure == "Ib did not connect back in time"
        assert call.at_rest

    def test_too_early(self) -> None:
        """It is held for two seconds, and so is a bounded number of others."""
        call = Calling(how="asks")
        early = [call.arrives(f"S{n}") for n in range(HELD_MOST + 1)]
        assert [client.closed for client in early] == [False] * HELD_MOST + [True]
        advance(call.clock, HOLD_SECONDS)
        assert all(client.closed and not client.bytes() for client in early)


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
        """It says so, and does not dial; a request that lacks anything is not decided on (I3)."""
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
        """A yes when the connection is gone dials nothing: the mediator can't be told (I26)."""
        late: Deferred[bool] = Deferred(lambda given_up: given_up.callback(True))
        goes = Goes(lambda: late)
        wire = Wire(events=goes)
        wire.mediator.type(f"{ASKED}\n")
        wire.mediator.vanish()
        assert late.called
        assert [what for what, *_ in goes.heard] == ["comes", "lost"]

    def test_a_connection_that_only_asks(self) -> None:
        """A command does not dial back."""
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
