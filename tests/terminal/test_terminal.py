"""A terminal as a service, with a mediator and other terminals, all in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.defer import CancelledError
from twisted.internet.error import CannotListenError, ConnectionDone, ConnectionLost

from broker.messages.errors import (
    CalleeBusy,
    CalleeNotFound,
    PermissionDenied,
    ServiceUnavailable,
)
from broker.messages.grammar import NOTIFY, REGISTER
from broker.messages.message import Message
from broker.messages.statements import CONNECTION_REQUESTED
from broker.terminal.errors import Aborted, CallFailed
from broker.terminal.registration.client import MediatorClient
from broker.terminal.registration.registration import CONNECT_TIMEOUT, WAKE_UP_INTERVAL
from broker.terminal.terminal import Terminal
from tests.support.clock import result_of
from tests.support.log import the_log
from tests.support.transport import Client, connect, parse_all
from tests.terminal.keys import ANNOUNCEMENT, a_handshake, a_request, framed
from tests.terminal.network import HOST, MEDIATOR_PORT, Listener, Outcome, World
from tests.terminal.speakers import Echo, HalfCloseable, Handler, Maker

PORT = 1203


class Both(World):
    """A network with a caller Ia, and a callee Ib that permits it and echoes.

    :ivar handler: what takes Ib's calls
    """

    def __init__(
        self,
        *,
        handler: Handler | None = None,
        mediator: Mapping[str, Any] | None = None,
        **callee: Any,
    ) -> None:
        super().__init__(**(mediator or {}))
        self.handler = handler or Handler(Echo)
        options = {"handler": self.handler, "accept": ["Ia"], **callee}
        self.ib = self.terminal("Ib", PORT, **options)
        self.ia = self.terminal("Ia")

    def calling(self, count: int = 1) -> list[Outcome]:
        """What becomes of calls of Ia's to Ib, as far as they come at once."""
        outcomes = [Outcome(self.ia.call("Ib", Maker())) for _ in range(count)]
        self.run()
        return outcomes

    def withdraw(self) -> bool:
        """Ib withdraws Ia's permit."""
        return self.outcome(self.ib.edit(["Delete Ia"])).done

    def typed(self, text: str) -> Client:
        """A person says something to the mediator."""
        client = self.client()
        client.type(text)
        self.run()
        return client

    def ends(self) -> list[str | None]:
        """How the calls have ended, as the mediator was told."""
        return [message.get("End") for message in self.heard if "End" in message.fields]

    def kinds(self) -> list[str]:
        """What the mediator was told, in short."""
        return [f"{message.verb} {message.statement}".strip() for message in self.heard]


def port_of(terminal: Terminal) -> int:
    """Where a terminal listens."""
    address: Any = result_of(terminal.listening).getHost()
    port: int = address.port
    return port


def knocks(world: World, *messages: Message | bytes) -> Client:
    """Somebody dials Ib, and says that."""
    client = connect(world.factory_at(PORT), world.clock, port=PORT)
    for message in messages:
        client.send(message)
    world.run()
    return client


class RegistrationTests:
    """A terminal keeps itself registered."""

    @pytest.mark.parametrize(
        ("at", "options", "contact"),
        [
            # It registers its address on the mediator's connection, and its port (A7, A22).
            (1300, {}, {"Address": HOST, "Port": "1300"}),
            # Address and port may be given, where they differ from what it sees (A22).
            (
                1300,
                {"address": "127.0.0.9", "port": 4000},
                {"Address": "127.0.0.9", "Port": "4000"},
            ),
            # Where the port is left open, the one it got is registered (A22).
            (0, {}, {"Address": HOST}),
            # A terminal that does not listen registers no address.
            (None, {}, {}),
        ],
    )
    def test_where_it_is(
        self, at: int | None, options: dict[str, Any], contact: dict[str, str]
    ) -> None:
        """It logs in and registers in one message, and is ready then."""
        world = World()
        ib = world.terminal("Ib", at, **options)
        assert Outcome(ib.ready()).done
        if at is not None:
            assert port_of(ib) == at or at == 0
            contact = {"Port": str(port_of(ib)), **contact}
        (registration,) = world.heard
        assert registration.verb == REGISTER
        assert registration.fields == {"Identifier": "Ib", "Transaction": "1", **contact}

    def test_permits(self) -> None:
        """Its permits are added to what is there, and edited over its connection (A2–A4)."""
        world = World()
        world.client().type("REGISTER\nIdentifier:Ib\nAccept:Add Ix\n\n")
        ib = world.terminal("Ib", PORT, accept=["Ia", "Ic"])
        assert world.outcome(ib.accepted()).value == ["Ix", "Ia", "Ic"]
        assert world.outcome(ib.edit(["Add Id,Ie", "Delete Ia"])).done
        assert world.accepted("Ib") == ["Ix", "Ic", "Id", "Ie"]

    def test_withdrawn_stays_withdrawn(self) -> None:
        """A store that may have lost what was granted is told again, once, and never after that.

        What was withdrawn stays withdrawn after a reconnect (I2), by the terminal or without it.
        """
        both = Both(accept=["Ia", "Ix"])
        both.restart_mediator(seed=2)
        both.advance(1)
        assert both.accepted("Ib") == ["Ia", "Ix"]
        both.withdraw()
        registrations = both.kinds().count(REGISTER)
        both.lose_line("Ib")
        both.typed("REGISTER\nIdentifier:Ib\nAccept:Delete Ix\n\n")
        both.advance(1)
        assert Outcome(both.ib.ready()).done
        assert both.kinds().count(REGISTER) == registrations + 2
        assert both.accepted("Ib") == []

    def test_refused(self) -> None:
        """A registration that is refused is said to the operator, and tried again later (A5)."""
        world = World()
        with the_log() as lines:
            ib = world.terminal("Ib", PORT, address="192.0.2.1", accept=["Ia"])
        assert any("refused the registration of Ib: Registration Failed." in line for line in lines)
        assert (Outcome(ib.ready()).done, world.accepted("Ib")) == (False, [])
        asked = len(world.heard)
        world.advance(10)
        assert asked < len(world.heard) < asked + 10

    def test_superseded(self) -> None:
        """Where another connection registers as this terminal, it says so, and does not fight."""
        both = Both()
        with the_log() as lines:
            both.typed("REGISTER\nIdentifier:Ib\nAddress:127.0.0.1\n\n")
        assert any("Ib is now reached elsewhere" in line for line in lines)
        heard = len(both.heard)
        both.advance(60)
        assert (len(both.heard), Outcome(both.ib.ready()).done) == (heard, True)

    def test_identifier(self) -> None:
        """An identifier is taken in its one form, however it was typed (A18, I4)."""
        both, handler = Both(), Handler(Echo)
        both.terminal("Jose\u0301", 1400, handler=handler, accept=["Zoe\u0308"])
        transport = both.called(both.terminal("Zoe\u0308"), "Jose\u0301").transport
        assert (transport.identifier, transport.peer) == ("Zo\xeb", "Jos\xe9")
        assert handler.calls[0][0] == "Zo\xeb"
        with pytest.raises(ValueError, match="identifier"):
            both.terminal("I,b")


class ReconnectTests:
    """A connection that is lost is made again."""

    def away(self, seconds: float) -> World:
        """A terminal whose mediator has been away so long."""
        world = World()
        world.terminal("Ib", PORT, jitter=lambda: 1.0)
        world.mediator_goes()
        world.advance(seconds)
        return world

    def wake(self, world: World) -> None:
        """Dial the terminal, and say what a mediator says there."""
        assert knocks(world, Message(NOTIFY, CONNECTION_REQUESTED)).closed

    def test_back_off(self) -> None:
        """The wait doubles from attempt to attempt, up to 30 s; once registered, it is short."""
        world = self.away(150)
        times = [when for when, port in world.dialled if port == MEDIATOR_PORT]
        waits = [round(after - before, 6) for before, after in pairwise(times)]
        assert waits == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0, 30.0]
        world.mediator_comes()
        world.advance(30)
        assert world.has_line("Ib")
        before = world.clock.seconds()
        world.lose_line("Ib")
        world.advance(1)
        assert round(world.dialled[-1][0] - before, 6) == 0.2

    def test_woken(self) -> None:
        """A stranger may make it connect at once, and nothing else (I26)."""
        world = self.away(20)
        world.mediator_comes()
        assert not world.has_line("Ib")
        self.wake(world)
        assert Outcome(world.terminals[0].ready()).done
        dialled, line = len(world.dialled), world.line_of("Ib")
        world.advance(5)
        self.wake(world)  # while it is connected, it ignores that
        world.advance(5)
        assert (len(world.dialled), world.line_of("Ib")) == (dialled, line)

    def test_woken_by_a_flood(self) -> None:
        """However often a stranger says so, it connects once a second (I26, I16)."""
        world = self.away(60)
        dialled = len(world.dialled)
        for _ in range(50):
            self.wake(world)
            world.advance(0.1)
        assert len(world.dialled) - dialled <= 5 / WAKE_UP_INTERVAL + 1


class StatusTests:
    """What a terminal answers when it is asked whether it can take a call."""

    @pytest.mark.parametrize(
        ("at", "options", "error"),
        [
            # A terminal that does not listen cannot be called (A8).
            (None, {"accept": ["Ia"]}, CalleeNotFound),
            # One without a handler is busy.
            (1400, {"accept": ["Ia"]}, CalleeBusy),
            # A caller without a permit is denied, and the callee hears nothing (A9, I1).
            (1400, {"handler": Handler()}, PermissionDenied),
        ],
    )
    def test_not_called(
        self, at: int | None, options: dict[str, Any], error: type[Exception]
    ) -> None:
        """A call that cannot be made fails with the reason."""
        both = Both()
        both.terminal("Ic", at, **options)
        moved = list(both.line_of("Ic").moved)
        assert isinstance(both.failed(callee="Ic"), error)
        assert (both.line_of("Ic").moved == moved) is (error is not CalleeBusy)

    def test_load(self) -> None:
        """Its status is what its load says now (A14)."""
        now = iter([False, True])
        both = Both(load=SimpleNamespace(acceptable=lambda: next(now)))
        assert isinstance(both.failed(), CalleeBusy)
        assert both.called()

    @pytest.mark.parametrize("own", [False, True])
    def test_one_at_a_time(self, own: bool) -> None:
        """In a call it is busy, and afterwards not; a call of its own counts as well (A25)."""
        both = Both(one_at_a_time=True, accept=["Ia", "Ic"])
        ic = both.terminal("Ic", 1400, handler=Handler(), accept=["Ib"])
        protocol = both.called(both.ib, "Ic") if own else both.called()
        assert isinstance(both.failed(ic), CalleeBusy)
        both.hangs_up(protocol)
        assert len(both.ib.calls) == 0
        assert both.called(ic)

    def test_denied_at_the_door(self) -> None:
        """Where the mediator asks for no status, a second caller is denied at the door (A25)."""
        both = Both(mediator={"ask_status": False}, one_at_a_time=True, accept=["Ia", "Ic"])
        both.called()
        error = both.failed(both.terminal("Ic"))
        assert isinstance(error, CallFailed)
        assert str(error) == "Ib denied the call: Permission Denied."
        assert [caller for caller, _, _ in both.handler.calls] == ["Ia"]


class CallTests:
    """Whole calls, from the first registration to the last report."""

    def test_end_to_end(self) -> None:
        """Fig. 12 and 13 with 16 in them: asked, granted, dialled, spoken, ended (A7–A13)."""
        both = Both()
        both.heard.clear()
        maker = Maker(HalfCloseable)
        protocol = both.called(maker=maker)
        ((caller, session, echo),) = both.handler.calls
        assert (caller, session) == ("Ia", protocol.transport.session)
        # What is said goes directly; the mediator has only the messages of the call (A12).
        lines = sum(sum(pair.moved) for pair in both.between(MEDIATOR_PORT))
        assert both.echoed(protocol, bytes(200_000))
        assert sum(sum(pair.moved) for pair in both.between(MEDIATOR_PORT)) == lines
        assert sum(both.between(PORT)[0].moved) > 400_000
        assert (len(both.ia.calls), len(both.ib.calls)) == (1, 1)
        protocol.transport.loseWriteConnection()
        both.run()
        assert [type(each.why) for each in (protocol, echo)] == [ConnectionDone] * 2
        assert maker.started == 0
        assert (len(both.ia.calls), len(both.ib.calls)) == (0, 0)
        assert both.kinds()[:3] == ["QUERY", "NOTIFY STATUS Acceptable.", "NOTIFY Begin."]
        assert both.ends() == ["Completed", "Completed"]
        assert len(both.mediator.mediator.context.sessions) == 0
        # The query is the figure's, and a transaction as well (fig. 5a).
        fields = list(both.heard[0].fields.items())
        assert fields[:2] == [("Identifier", "Ia"), ("Callee", "Ib")]

    def test_by_names(self) -> None:
        """Both log in by a name, and it calls by one: they agree on who they are (C1, A12)."""
        world = World(accounts={"Ia": "of Ia", "Ib": "of Ib"})
        accounts = world.mediator.mediator.accounts
        for identifier, name in (("Ia", "太郎"), ("Ib", "the office")):
            result_of(accounts.add_name(identifier, name))
        handler = Handler(Echo)
        ib = world.terminal("the office", PORT, handler=handler, accept=["太郎"], password="of Ib")
        ia = world.terminal("太郎", password="of Ia")
        assert (ia.identifier, ib.identifier) == ("Ia", "Ib")
        for callee in ("the office", "Ib"):
            protocol = world.called(ia, callee)
            assert protocol.transport.peer == "Ib"
            assert world.echoed(protocol)
        assert [caller for caller, _, _ in handler.calls] == ["Ia", "Ia"]
        world.lose_line("Ib")
        world.advance(1)
        assert world.called(ia, "the office").transport.peer == "Ib"

    def test_woken_by_the_mediator(self) -> None:
        """A callee whose connection is lost is dialled, connects, and takes the call (I26)."""
        both = Both(jitter=lambda: 1.0)
        both.mediator_goes()
        both.advance(0.1)
        both.mediator_comes()
        both.advance(0.11)
        assert Outcome(both.ib.ready()).done
        both.lose_line("Ib")
        assert both.called()
        assert (both.clock.seconds(), PORT) in both.dialled

    def test_many_at_once(self) -> None:
        """Calls of several callers, itself among them, go on at the same time."""
        both = Both(accept=["I0", "I1", "I2", "Ib"])
        callers = [*map(both.terminal, ["I0", "I1", "I2"]), both.ib]
        protocols = [both.called(caller) for caller in callers]
        said = [bytes((n,)) * 3 for n in range(4)]
        for protocol, data in zip(protocols, said, strict=True):
            protocol.transport.write(data)
        both.run()
        assert [protocol.received for protocol in protocols] == said
        for protocol in protocols:
            both.hangs_up(protocol)
        assert [type(protocol.why) for protocol in protocols] == [ConnectionDone] * 4
        assert len(both.ib.calls) == 0

    def test_one_after_the_other(self) -> None:
        """Calls to one callee wait for each other, since a new query voids an unspent grant."""
        both = Both()
        both.heard.clear()
        assert all(outcome.value is not None for outcome in both.calling(3))
        said = [kind for kind in both.kinds() if kind != "NOTIFY Begin."]
        assert said == ["QUERY", "NOTIFY STATUS Acceptable."] * 3
        sessions = both.mediator.mediator.context.sessions
        assert len(both.handler.calls) == len(both.ia.calls) == len(sessions) == 3

    def test_a_failed_call_lets_the_next_one_go(self) -> None:
        """A call that fails, or is given up, does not hold up those behind it."""
        both = Both()
        both.silent.add(PORT)
        stuck, given_up, last = both.calling(3)
        given_up.deferred.cancel()
        assert isinstance(given_up.error, CancelledError)
        stuck.deferred.cancel()
        both.silent.clear()
        both.run()
        assert isinstance(stuck.error, CancelledError)
        assert last.value is not None
        assert len(both.ia._turns) == 0

    def test_different_callees(self) -> None:
        """A callee that does not answer holds up no call to another one."""
        both = Both()
        both.terminal("Ic", 1400, handler=Handler(Echo), accept=["Ia"])
        both.silent.add(PORT)
        (stuck,) = both.calling()
        assert both.called(callee="Ic")
        assert not stuck.done
        both.advance(11)
        assert isinstance(stuck.error, CallFailed)

    def test_no_mediator(self) -> None:
        """Without a connection a call waits for one for 10 s, and says so (I3)."""
        world = World()
        world.leave(MEDIATOR_PORT)
        ia = world.terminal("Ia")
        outcomes = [Outcome(ia.call("Ib", Maker())), Outcome(ia.accepted())]
        world.advance(CONNECT_TIMEOUT - 0.1)
        assert not any(outcome.done for outcome in outcomes)
        world.advance(0.1)
        assert all(isinstance(outcome.error, ServiceUnavailable) for outcome in outcomes)

    def test_connection_lost(self) -> None:
        """A connection that is lost before the mediator answers fails the call.

        A call that is requested while it is away is made when it is back.
        """
        both = Both()
        both.silent.add(MEDIATOR_PORT)
        (asking,) = both.calling()
        both.lose_line("Ia")
        both.silent.clear()
        assert isinstance(asking.error, ConnectionLost)
        (waiting,) = both.calling()
        assert not waiting.done
        both.advance(1)
        assert waiting.value is not None

    def test_nothing_secret_in_the_log(self) -> None:
        """No password and no key of a call, given or used, is logged (I18)."""
        secrets: set[str] = set()

        def trace(_: object, direction: str, message: Message) -> None:
            for name in ("Password", "Reply Password", "Encrypt Key"):
                secrets.add(message.fields.get(name, ""))

        with the_log() as lines:
            both = Both(trace=trace)
            both.called().transport.abortConnection("enough")
            both.run()
        secrets.discard("")
        assert len(secrets) == 3
        assert lines
        assert not [line for line in lines for secret in secrets if secret in line]


class WithdrawalTests:
    """Once a withdrawal is acknowledged, nothing goes on that rested on the permit (I2)."""

    def test_live_call(self) -> None:
        """A call that goes on is ended on both sides, with the reason; other calls go on."""
        both = Both(accept=["Ia", "Ic"])
        protocol = both.called()
        other = both.called(both.terminal("Ic"))
        assert both.withdraw()
        for each in (protocol, both.handler.calls[0][2]):
            assert isinstance(each.why, Aborted)
            assert each.why.cause == "the session was terminated"
        assert both.ends() == ["Terminated", "Terminated"]
        assert isinstance(both.failed(), PermissionDenied)
        assert both.echoed(other)
        assert len(both.ib.calls) == 1

    @pytest.mark.parametrize(
        ("happens", "opens"),
        [
            (lambda both: None, True),
            # Credentials that were granted before the withdrawal open nothing after it.
            (Both.withdraw, False),
            # A callee that cannot be told of a withdrawal counts on no permit: unspent is void.
            (lambda both: both.lose_line("Ib"), False),
        ],
    )
    def test_unspent(self, happens: Callable[[Both], object], opens: bool) -> None:
        """What Ia, typed by hand, was granted, and shows at Ib's door."""
        both = Both()
        client = both.typed("REGISTER\nIdentifier:Ia\n\nQUERY\nIdentifier:Ia\nCallee:Ib\n\n")
        (_, _, granted), _ = parse_all(client.bytes())
        happens(both)
        session, key = granted.fields["Session"], granted.fields["Encrypt Key"]
        handshake = a_handshake(initiator=True, session=session, key=key)
        request = handshake.write(a_request("Ia", granted.fields["Password"]))
        knocking = knocks(both, framed(session, request))
        assert bool(knocking.bytes()) is opens
        both.advance(2)
        assert knocking.closed is not opens
        assert both.handler.calls == []

    def test_withdrawn_while_the_callee_is_away(self) -> None:
        """A call that goes on while the callee's connection is away is ended when it is back."""
        both = Both(jitter=lambda: 1.0)
        protocol = both.called()
        both.lose_line("Ib")
        both.client().type("REGISTER\nIdentifier:Ib\nAccept:Delete Ia\n\n")
        both.advance(1)
        ended = (protocol, both.handler.calls[0][2])
        assert [type(each.why) for each in ended] == [Aborted, Aborted]

    def test_a_call_outlives_its_connections(self) -> None:
        """A call itself needs no mediator: it goes on while the mediator is away."""
        both = Both()
        protocol = both.called()
        both.mediator_goes()
        both.advance(60)
        assert both.echoed(protocol, b"still here")


class ServiceTests:
    """Started, stopped, started again."""

    def quiet(self, world: World) -> bool:
        """Whether no connection and no timer is left, once the mediator's own are gone."""
        assert not world.open()
        world.mediator.mediator.stop()
        for part in (world.mediator.resolver, world.mediator.trigger):
            stoppable: Any = part
            stoppable.stop()
        world.run()
        return world.clock.getDelayedCalls() == []

    def stop(self, world: World, terminal: Terminal) -> bool:
        """Stop a terminal; say whether it stopped without time passing."""
        stopped = world.outcome(terminal.stopService())
        assert stopped.error is None
        return stopped.done

    @pytest.mark.parametrize(
        "happens",
        [
            lambda world: None,
            # Its connection at the door is closed (I14).
            lambda world: knocks(world, framed("S9", bytes(60))),
            # It waits to connect again: it does not connect now.
            lambda world: (world.mediator_goes(), world.advance(5)),
        ],
        ids=["idle", "a stranger at the door", "waits to connect"],
    )
    def test_alone(self, happens: Callable[[World], object]) -> None:
        """A terminal that is stopped leaves no connection, no listener and no timer."""
        world = World()
        ib = world.terminal("Ib", PORT, handler=Handler(), accept=["Ia"])
        happened = happens(world)
        dialled = len(world.dialled)
        assert self.stop(world, ib)
        assert not world.listens(PORT)
        assert getattr(happened, "closed", True)
        world.advance(120)
        assert len(world.dialled) == dialled
        assert self.quiet(world)

    def test_in_a_call(self) -> None:
        """Its calls are broken off and reported before its connection closes (S5007)."""
        both = Both()
        protocol = both.called()
        assert self.stop(both, both.ib)
        assert isinstance(protocol.why, Aborted)
        assert protocol.why.cause == "the terminal stops"
        assert both.ends() == ["Failed", "Failed"]
        assert self.stop(both, both.ia)
        assert self.quiet(both)

    @pytest.mark.parametrize("where", ["no line", "asking", "handshake"])
    def test_while_calling(self, where: str) -> None:
        """Calls that are not open yet are given up."""
        both = Both()
        if where == "no line":
            both.lose_line("Ia")
        else:
            both.silent.add(MEDIATOR_PORT if where == "asking" else PORT)
        outcomes = both.calling(2)
        stopped = Outcome(both.ia.stopService())
        both.silent.clear()
        both.run()
        assert stopped.done
        assert all(isinstance(outcome.error, CancelledError) for outcome in outcomes)
        assert self.stop(both, both.ib)
        assert self.quiet(both)

    def test_while_it_stops(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A peer that reads nothing holds it up for 10 s, not longer (I15).

        Until then it is busy for callers (A14), and does not expect a call that it is told of, nor
        connect to its caller.
        """
        monkeypatch.setattr(MediatorClient, "share_port", lambda line: ("192.0.2.5", 40002))
        both = Both(accept=["Ia", "Ic"])
        ic = both.terminal("Ic")
        both.called()
        both.silent.add(PORT)
        mediator: Any = both.line_of("Ib").b.protocol
        stopped = both.outcome(both.ib.stopService())
        assert isinstance(both.failed(ic), CalleeBusy)
        before = len(both.dialled)
        more = f"Caller Seen:198.50.100.7 40001\nCaller Back:{HOST} 4000\n\n"
        mediator.transport.write(f"{ANNOUNCEMENT[:-1]}{more}".encode())
        both.run()
        assert len(both.ib._pending) == 0
        assert both.ib._dial_back._timers == {}
        both.advance(9.9)
        assert (stopped.done, len(both.dialled)) == (False, before)
        both.advance(0.1)
        assert (stopped.done, len(both.dialled)) == (True, before)
        both.advance(5)
        assert len(both.dialled) == before
        both.silent.clear()
        assert all(self.stop(both, terminal) for terminal in (both.ia, ic))
        assert self.quiet(both)

    def test_restart(self) -> None:
        """Started again, it listens, registers where it listens now, and takes calls."""
        both = Both()
        ic = both.terminal("Ic", 0, handler=Handler(Echo), accept=["Ia"])
        both.called(callee="Ic")
        first = port_of(ic)
        assert self.stop(both, ic)
        ic.startService()
        both.run()
        assert first != port_of(ic) == int(both.heard[-1].fields["Port"])
        assert both.echoed(both.called(callee="Ic"), b"again")
        assert self.stop(both, both.ia)
        both.ia.startService()
        both.run()
        assert both.called()

    def test_can_not_listen(self) -> None:
        """Where the listener cannot be opened, it says so, and does not connect."""
        world = World()
        error = CannotListenError("", PORT, OSError("in use"))
        terminal = world.terminal("Ib", listen=Listener(world, PORT, fails=error))
        assert world.outcome(terminal.listening).error is error
        assert world.dialled == []
        assert self.stop(world, terminal)
