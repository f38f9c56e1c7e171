"""A terminal as a service, with a mediator and other terminals, all in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
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
from tests.support.transport import connect, parse_all
from tests.terminal.keys import (
    KEY,
    PASSWORD,
    REPLY_PASSWORD,
    SESSION,
    a_handshake,
    a_request,
    framed,
)
from tests.terminal.network import HOST, MEDIATOR_PORT, Listener, Outcome, World
from tests.terminal.speakers import Echo, HalfCloseable, Handler, Maker, Plain

PORT = 1203


class Limit:
    """A load that is what a test says."""

    def __init__(self) -> None:
        self.idle = True

    def acceptable(self) -> bool:
        """What the test says."""
        return self.idle


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

    def calling(self) -> Outcome:
        """What becomes of a call of Ia's to Ib, as far as it comes at once."""
        outcome = Outcome(self.ia.call("Ib", Maker()))
        self.run()
        return outcome

    def withdraw(self) -> Outcome:
        """Ib withdraws Ia's permit."""
        edited = Outcome(self.ib.edit(["Delete Ia"]))
        self.run()
        return edited

    def ends(self) -> list[str | None]:
        """How the calls have ended, as the mediator was told."""
        return [message.get("End") for message in self.heard if "End" in message.fields]


def port_of(terminal: Terminal) -> int:
    """Where a terminal listens."""
    address: Any = result_of(terminal.listening).getHost()
    port: int = address.port
    return port


def kinds(world: World) -> list[str]:
    """What the mediator was told, in short."""
    return [f"{message.verb} {message.statement}".strip() for message in world.heard]


class RegistrationTests:
    """A terminal keeps itself registered."""

    def test_where_it_is(self) -> None:
        """It registers its address on the mediator's connection, and its port (A7, A22)."""
        world = World()
        ib = world.terminal("Ib", 1300, handler=Handler())
        assert port_of(ib) == 1300
        assert Outcome(ib.ready()).done
        (registration,) = world.heard
        assert registration.verb == REGISTER
        fields = {"Identifier": "Ib", "Address": HOST, "Port": "1300", "Transaction": "1"}
        assert registration.fields == fields

    def test_where_it_is_told_to_be(self) -> None:
        """Address and port may be given, where they differ from what it sees (A22)."""
        world = World()
        world.terminal("Ib", 1300, address="127.0.0.9", port=4000)
        (registration,) = world.heard
        assert (registration.get("Address"), registration.get("Port")) == ("127.0.0.9", "4000")

    def test_a_port_of_its_own_choosing(self) -> None:
        """Where the port is left open, the one it got is registered (A22)."""
        world = World()
        ib = world.terminal("Ib", 0)
        assert world.heard[0].get("Port") == str(port_of(ib))

    def test_only_a_caller(self) -> None:
        """A terminal that listens nowhere registers no address: it can't be called (A8)."""
        both = Both()
        both.terminal("Ic", accept=["Ia"])
        assert "Address" not in both.heard[-1].fields
        assert isinstance(both.failed(callee="Ic"), CalleeNotFound)

    def test_accepts_are_added(self) -> None:
        """Whom it is told to accept is added to what is there (A2)."""
        world = World()
        client = world.client()
        client.type("REGISTER\nIdentifier:Ib\nAccept:Add Ix\n\n")
        ib = world.terminal("Ib", PORT, accept=["Ia", "Ic"])
        assert world.accepted("Ib") == ["Ix", "Ia", "Ic"]
        listed = Outcome(ib.accepted())
        world.run()
        assert listed.value == ["Ix", "Ia", "Ic"]

    def test_edits(self) -> None:
        """Its permits are edited over its line (A2, A3, A4)."""
        world = World()
        ib = world.terminal("Ib", PORT, accept=["Ia"])
        edited = Outcome(ib.edit(["Add Ic,Ie", "Delete Ia"]))
        world.run()
        assert edited.done
        assert world.accepted("Ib") == ["Ic", "Ie"]

    def test_reconnect_grants_nothing_again(self) -> None:
        """What was withdrawn meanwhile stays withdrawn after a reconnect (I2)."""
        both = Both()
        both.withdraw()
        registrations = kinds(both).count(REGISTER)
        both.lose_line("Ib")
        both.advance(1)
        assert Outcome(both.ib.ready()).done
        assert kinds(both).count(REGISTER) == registrations + 1
        assert both.accepted("Ib") == []

    def test_withdrawn_while_away(self) -> None:
        """The same where somebody else withdrew it while the terminal was away (I2)."""
        world = World()
        world.terminal("Ib", PORT, accept=["Ia"])
        world.lose_line("Ib")
        world.client().type("REGISTER\nIdentifier:Ib\nAccept:Delete Ia\n\n")
        world.advance(1)
        assert world.has_line("Ib")
        assert world.accepted("Ib") == []

    def test_new_epoch(self) -> None:
        """A store that may have lost what was granted is told again, once."""
        both = Both()
        both.restart_mediator(seed=2)
        both.advance(1)
        assert both.accepted("Ib") == ["Ia"]
        both.withdraw()
        both.lose_line("Ib")
        both.advance(1)
        assert both.accepted("Ib") == []

    def test_refused(self) -> None:
        """A registration that is refused is said to the operator, and tried again later (A5)."""
        world = World()
        with the_log() as lines:
            ib = world.terminal("Ib", PORT, address="192.0.2.1", accept=["Ia"])
        assert any("refused the registration of Ib: Registration Failed." in line for line in lines)
        assert not Outcome(ib.ready()).done
        assert world.accepted("Ib") == []
        asked = len(world.heard)
        world.advance(10)
        assert asked < len(world.heard) < asked + 10

    def test_superseded(self) -> None:
        """Where another connection takes the reach over, it says so, and doesn't fight back."""
        world = World()
        ib = world.terminal("Ib", PORT)
        with the_log() as lines:
            world.client().type("REGISTER\nIdentifier:Ib\nAddress:127.0.0.1\n\n")
            world.run()
        assert any("Ib is now reached elsewhere" in line for line in lines)
        heard = len(world.heard)
        world.advance(60)
        assert len(world.heard) == heard
        assert Outcome(ib.ready()).done

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
    """A line that is lost is made again."""

    def waits(self, world: World) -> list[float]:
        """Seconds between one attempt to reach the mediator and the next."""
        times = [when for when, port in world.dialled if port == MEDIATOR_PORT]
        return [round(after - before, 6) for before, after in pairwise(times)]

    def away(self, seconds: float, jitter: Callable[[], float] = lambda: 1.0) -> World:
        """A terminal whose mediator has been away so long."""
        world = World()
        world.terminal("Ib", PORT, jitter=jitter)
        world.mediator_goes()
        world.advance(seconds)
        return world

    def test_back_off(self) -> None:
        """The wait doubles from attempt to attempt, up to 30 s."""
        world = self.away(150)
        assert self.waits(world) == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0, 30.0]

    def test_jitter(self) -> None:
        """Each attempt takes from half of its wait to the whole, so that many spread."""
        drawn = iter([0.0, 0.5, 1.0, 0.0])
        assert self.waits(self.away(1.9, lambda: next(drawn))) == [0.1, 0.3, 0.8]

    def test_short_wait_after_success(self) -> None:
        """Once it was registered again, the next loss begins with a short wait."""
        world = self.away(10)
        world.mediator_comes()
        world.advance(10)
        assert world.has_line("Ib")
        before = world.clock.seconds()
        world.lose_line("Ib")
        world.advance(1)
        assert round(world.dialled[-1][0] - before, 6) == 0.2

    def test_woken(self) -> None:
        """Somebody outside may make it connect at once, and nothing else (I26)."""
        world = self.away(20)
        world.mediator_comes()
        assert not world.has_line("Ib")
        self.wake(world)
        assert Outcome(world.terminals[0].ready()).done
        assert world.has_line("Ib")

    def test_woken_by_a_flood(self) -> None:
        """However often a stranger says so, it connects once a second at the most (I26, I16)."""
        world = self.away(60)
        dialled = len(world.dialled)
        for _ in range(50):
            self.wake(world)
            world.advance(0.1)
        assert len(world.dialled) - dialled <= 5 / WAKE_UP_INTERVAL + 1

    def test_woken_while_connected(self) -> None:
        """While it is connected it ignores that."""
        world = World()
        world.terminal("Ib", PORT)
        dialled, line = len(world.dialled), world.line_of("Ib")
        self.wake(world)
        world.advance(5)
        assert len(world.dialled) == dialled
        assert world.line_of("Ib") is line

    def wake(self, world: World) -> None:
        """Dial the terminal, and say what a mediator says there."""
        client = connect(world.factory_at(PORT), world.clock, port=PORT)
        client.send(Message(NOTIFY, CONNECTION_REQUESTED))
        world.run()
        assert client.closed


class StatusTests:
    """What a terminal answers when it is asked whether it can take a call."""

    def test_nobody_takes_calls(self) -> None:
        """A terminal without a handler is busy."""
        both = Both()
        both.terminal("Ic", 1400, accept=["Ia"])
        assert isinstance(both.failed(callee="Ic"), CalleeBusy)

    def test_load(self) -> None:
        """Its status is what its load says now (A14)."""
        load = Limit()
        both = Both(load=load)
        load.idle = False
        assert isinstance(both.failed(), CalleeBusy)
        load.idle = True
        assert both.called()

    def test_one_at_a_time(self) -> None:
        """While it is in a call it is busy, and afterwards not (A25)."""
        both = Both(one_at_a_time=True, accept=["Ia", "Ic"])
        protocol = both.called()
        ic = both.terminal("Ic")
        assert isinstance(both.failed(ic), CalleeBusy)
        protocol.transport.loseConnection()
        both.run()
        assert len(both.ib.calls) == 0
        assert both.called(ic)

    def test_a_call_of_its_own_counts(self) -> None:
        """It is as busy in a call that it made itself (A25)."""
        both = Both(accept=["Ic"])
        ic = both.terminal("Ic", 1400, one_at_a_time=True, handler=Handler(), accept=["Ia"])
        protocol = both.called(ic)
        assert isinstance(both.failed(callee="Ic"), CalleeBusy)
        protocol.transport.loseConnection()
        both.run()
        assert both.called(callee="Ic")

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
        assert caller == "Ia"
        assert session == protocol.transport.session
        assert both.echoed(protocol)
        assert (len(both.ia.calls), len(both.ib.calls)) == (1, 1)
        protocol.transport.loseWriteConnection()
        both.run()
        assert isinstance(protocol.why, ConnectionDone)
        assert isinstance(echo.why, ConnectionDone)
        assert maker.started == 0
        assert (len(both.ia.calls), len(both.ib.calls)) == (0, 0)
        assert kinds(both)[:3] == ["QUERY", "NOTIFY STATUS Acceptable.", "NOTIFY Begin."]
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
        assert world.has_line("Ib")
        assert world.called(ia, "the office").transport.peer == "Ib"

    def test_data_passes_the_mediator_by(self) -> None:
        """What is said goes directly; the mediator has only the messages of the call (A12)."""
        both = Both()
        protocol = both.called()
        lines = sum(sum(pair.moved) for pair in both.between(MEDIATOR_PORT))
        assert both.echoed(protocol, bytes(200_000))
        assert sum(sum(pair.moved) for pair in both.between(MEDIATOR_PORT)) == lines
        assert sum(both.between(PORT)[0].moved) > 400_000

    def test_not_permitted(self) -> None:
        """A caller without a permit is denied, and the callee hears nothing (A9, I1)."""
        both = Both()
        moved = list(both.line_of("Ib").moved)
        assert isinstance(both.failed(both.terminal("Ic")), PermissionDenied)
        assert both.line_of("Ib").moved == moved
        assert both.handler.calls == []

    def test_woken_by_the_mediator(self) -> None:
        """A callee whose line is lost is dialled, connects by itself, and takes the call (I26)."""
        both = Both(jitter=lambda: 1.0)
        both.mediator_goes()
        both.advance(0.1)
        both.mediator_comes()
        both.advance(0.11)
        assert Outcome(both.ib.ready()).done
        both.lose_line("Ib")
        assert both.called()
        assert (both.clock.seconds(), PORT) in both.dialled

    def test_to_itself(self) -> None:
        """A terminal that permits itself may call itself."""
        both = Both(accept=["Ib"])
        protocol = both.called(both.ib)
        assert both.echoed(protocol)
        protocol.transport.loseConnection()
        both.run()
        assert isinstance(protocol.why, ConnectionDone)
        assert len(both.ib.calls) == 0

    def test_many_at_once(self) -> None:
        """Calls of several callers to one callee go on beside each other."""
        names = [f"I{n}" for n in range(5)]
        both = Both(accept=names)
        protocols = [both.called(both.terminal(name)) for name in names]
        for n, protocol in enumerate(protocols):
            protocol.transport.write(bytes((n,)) * 3)
        both.run()
        assert [protocol.received for protocol in protocols] == [bytes((n,)) * 3 for n in range(5)]

    def test_one_after_the_other(self) -> None:
        """Calls to one callee wait for each other, since a new query voids an unspent grant."""
        both = Both()
        both.heard.clear()
        outcomes = [Outcome(both.ia.call("Ib", Maker())) for _ in range(3)]
        both.run()
        assert all(outcome.value is not None for outcome in outcomes)
        said = [kind for kind in kinds(both) if kind != "NOTIFY Begin."]
        assert said == ["QUERY", "NOTIFY STATUS Acceptable."] * 3
        sessions = both.mediator.mediator.context.sessions
        assert len(both.handler.calls) == len(both.ia.calls) == len(sessions) == 3

    def test_a_failed_call_lets_the_next_one_go(self) -> None:
        """A call that fails, or is given up, does not hold up those behind it."""
        both = Both()
        both.silent.add(PORT)
        stuck, given_up, last = (Outcome(both.ia.call("Ib", Maker())) for _ in range(3))
        both.run()
        given_up.deferred.cancel()
        assert isinstance(given_up.error, CancelledError)
        stuck.deferred.cancel()
        both.silent.clear()
        both.run()
        assert isinstance(stuck.error, CancelledError)
        assert last.value is not None
        assert len(both.ia._turns) == 0

    def test_different_callees(self) -> None:
        """A callee that doesn't answer holds up no call to another one."""
        both = Both()
        both.terminal("Ic", 1400, handler=Handler(Echo), accept=["Ia"])
        both.silent.add(PORT)
        stuck = both.calling()
        assert both.called(callee="Ic")
        assert not stuck.done
        both.advance(11)
        assert isinstance(stuck.error, CallFailed)

    def test_no_mediator(self) -> None:
        """Without a line a call waits for one for 10 s, and says so (I3)."""
        world = World()
        world.leave(MEDIATOR_PORT)
        ia = world.terminal("Ia")
        outcomes = [Outcome(ia.call("Ib", Maker())), Outcome(ia.accepted())]
        world.advance(CONNECT_TIMEOUT - 0.1)
        assert not any(outcome.done for outcome in outcomes)
        world.advance(0.1)
        assert all(isinstance(outcome.error, ServiceUnavailable) for outcome in outcomes)

    def test_line_comes_back_in_time(self) -> None:
        """A call that was asked for while the line was away is made when it is back."""
        both = Both()
        both.lose_line("Ia")
        outcome = both.calling()
        assert not outcome.done
        both.advance(1)
        assert outcome.value is not None

    def test_line_lost_while_asking(self) -> None:
        """A line that goes before the mediator answers fails the call."""
        both = Both()
        both.silent.add(MEDIATOR_PORT)
        outcome = both.calling()
        both.lose_line("Ia")
        assert isinstance(outcome.error, ConnectionLost)

    def test_plain_protocols(self) -> None:
        """Protocols that know no half-close work on both sides."""
        both = Both(handler=Handler(Plain))
        protocol = both.called(maker=Maker(Plain))
        protocol.transport.write(b"one way")
        protocol.transport.loseConnection()
        both.run()
        ((_, _, callee),) = both.handler.calls
        assert callee.received == b"one way"
        assert isinstance(protocol.why, ConnectionDone)
        assert isinstance(callee.why, ConnectionDone)

    def test_nothing_secret_in_the_log(self) -> None:
        """Not a password or key of a call, given or used, is logged by anybody (I18)."""
        secrets: set[str] = set()

        def trace(_: object, way: str, message: Message) -> None:
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

    def granted(self, both: Both) -> dict[str, str]:
        """What Ia, typed by hand, was granted."""
        client = both.client()
        client.type("REGISTER\nIdentifier:Ia\n\nQUERY\nIdentifier:Ia\nCallee:Ib\n\n")
        both.run()
        (_, _, credentials), _ = parse_all(client.bytes())
        return credentials.fields

    def knock(self, both: Both, fields: dict[str, str]) -> Any:
        """Somebody comes to Ib with credentials."""
        session, key = fields["Session"], fields["Encrypt Key"]
        handshake = a_handshake(initiator=True, session=session, key=key)
        client = connect(both.factory_at(PORT), both.clock, port=PORT)
        client.send(framed(session, handshake.write(a_request("Ia", fields["Password"]))))
        return client

    def test_live_call(self) -> None:
        """A call that goes on is ended on both sides, and both are told why."""
        both = Both()
        protocol = both.called()
        assert both.echoed(protocol)
        assert both.withdraw().done
        for one in (protocol, both.handler.calls[0][2]):
            assert isinstance(one.why, Aborted)
            assert one.why.cause == "the session was terminated"
        assert both.ends() == ["Terminated", "Terminated"]
        assert isinstance(both.failed(), PermissionDenied)

    def test_other_calls_go_on(self) -> None:
        """Calls that rest on other permits are not touched."""
        both = Both(accept=["Ia", "Ic"])
        both.called()
        other = both.called(both.terminal("Ic"))
        both.withdraw()
        assert both.echoed(other)
        assert len(both.ib.calls) == 1

    @pytest.mark.parametrize("withdrawn", [False, True])
    def test_unspent(self, withdrawn: bool) -> None:
        """Credentials that were granted before the withdrawal open nothing after it."""
        both = Both()
        fields = self.granted(both)
        if withdrawn:
            both.withdraw()
        client = self.knock(both, fields)
        assert bool(client.bytes()) is not withdrawn
        both.advance(2)
        assert client.closed is withdrawn
        assert both.handler.calls == []

    def test_unspent_when_the_line_is_lost(self) -> None:
        """A callee who can't be told of a withdrawal counts on no permit: unspent is void."""
        both = Both()
        fields = self.granted(both)
        both.lose_line("Ib")
        client = self.knock(both, fields)
        assert client.bytes() == b""
        both.advance(2)
        assert client.closed
        assert both.handler.calls == []

    def test_withdrawn_while_the_callee_is_away(self) -> None:
        """A call that goes on while the callee's line is away is ended when it is back."""
        both = Both(jitter=lambda: 1.0)
        protocol = both.called()
        both.lose_line("Ib")
        both.client().type("REGISTER\nIdentifier:Ib\nAccept:Delete Ia\n\n")
        both.advance(1)
        assert isinstance(protocol.why, Aborted)
        assert isinstance(both.handler.calls[0][2].why, Aborted)

    def test_a_call_outlives_its_line(self) -> None:
        """A call itself needs no mediator: it goes on while the lines are away."""
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
        stopped = Outcome(terminal.stopService())
        world.run()
        assert stopped.error is None
        return stopped.done

    def alone(self) -> tuple[World, Terminal]:
        """A terminal, and nothing that it does."""
        world = World()
        return world, world.terminal("Ib", PORT, handler=Handler(), accept=["Ia"])

    def test_idle(self) -> None:
        """A terminal that is stopped leaves no connection, no listener and no timer."""
        world, ib = self.alone()
        assert self.stop(world, ib)
        assert not world.listens(PORT)
        assert self.quiet(world)

    def test_in_a_call(self) -> None:
        """Its calls are broken off and reported before its line closes (S5007)."""
        both = Both()
        protocol = both.called()
        assert self.stop(both, both.ib)
        assert isinstance(protocol.why, Aborted)
        assert protocol.why.cause == "the terminal stops"
        assert both.ends() == ["Failed", "Failed"]
        assert self.stop(both, both.ia)
        assert self.quiet(both)

    def test_peer_that_does_not_read(self) -> None:
        """A peer that reads nothing holds it up for 10 s, and no longer (I15)."""
        both = Both()
        both.called()
        both.silent.add(PORT)
        stopped = Outcome(both.ia.stopService())
        both.advance(9.9)
        assert not stopped.done
        both.advance(0.1)
        assert stopped.done

    @pytest.mark.parametrize("where", ["no line", "asking", "handshake"])
    def test_while_calling(self, where: str) -> None:
        """Calls that do not stand yet are given up."""
        both = Both()
        if where == "no line":
            both.lose_line("Ia")
        else:
            both.silent.add(MEDIATOR_PORT if where == "asking" else PORT)
        outcomes = [Outcome(both.ia.call("Ib", Maker())) for _ in range(2)]
        both.run()
        stopped = Outcome(both.ia.stopService())
        both.silent.clear()
        both.run()
        assert stopped.done
        assert all(isinstance(outcome.error, CancelledError) for outcome in outcomes)
        assert self.stop(both, both.ib)
        assert self.quiet(both)

    def test_with_strangers_at_the_door(self) -> None:
        """Whoever was at the door is closed on (I14)."""
        world, ib = self.alone()
        client = connect(world.factory_at(PORT), world.clock, port=PORT)
        client.send(framed("S9", bytes(60)))
        assert self.stop(world, ib)
        assert client.closed
        assert self.quiet(world)

    def test_in_back_off(self) -> None:
        """Stopped while it waits to connect again, it connects no more."""
        world, ib = self.alone()
        world.mediator_goes()
        world.advance(5)
        dialled = len(world.dialled)
        assert self.stop(world, ib)
        world.advance(120)
        assert len(world.dialled) == dialled
        assert self.quiet(world)

    def stopping(self) -> tuple[Both, Any, Outcome]:
        """Ib, which stops as slowly as its peer reads: with its mediator's end of its line."""
        both = Both(accept=["Ia", "Ic"])
        both.called()
        both.silent.add(PORT)
        mediator: Any = both.line_of("Ib").b.protocol
        stopped = Outcome(both.ib.stopService())
        both.run()
        assert not stopped.done
        return both, mediator, stopped

    def test_not_acceptable(self) -> None:
        """A terminal that is stopping is busy to whoever calls it (A14)."""
        both, _, stopped = self.stopping()
        assert isinstance(both.failed(both.terminal("Ic")), CalleeBusy)
        assert not stopped.done

    def test_announced(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nor does it expect a call that it is told of, nor come to the caller."""
        monkeypatch.setattr(MediatorClient, "share_port", lambda line: ("192.0.2.5", 40002))
        both, mediator, stopped = self.stopping()
        before = len(both.dialled)
        fields = {
            "Caller ID": "Ic",
            "Password": PASSWORD,
            "Encrypt Key": KEY,
            "Session": SESSION,
            "Expires": "3600",
            "Reply Password": REPLY_PASSWORD,
            "Caller Seen": "198.50.100.7 40001",
            "Caller Back": f"{HOST} 4000",
        }
        mediator.send(Message.of(NOTIFY, fields))
        both.run()
        assert len(both.ib._pending) == 0
        assert both.ib._dial_back._timers == {}
        both.advance(15)
        assert stopped.done
        assert len(both.dialled) == before
        both.silent.clear()
        assert self.stop(both, both.ia)
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
        second = port_of(ic)
        assert second != first
        assert both.heard[-1].get("Port") == str(second)
        assert both.echoed(both.called(callee="Ic"), b"again")
        assert self.stop(both, both.ia)
        both.ia.startService()
        both.run()
        assert both.called()

    def test_can_not_listen(self) -> None:
        """Where the listener can't be opened, it says so, and doesn't connect."""
        world = World()
        error = CannotListenError("", PORT, OSError("in use"))
        terminal = world.terminal("Ib", listen=Listener(world, PORT, fails=error))
        assert Outcome(terminal.listening).error is error
        world.run()
        assert world.dialled == []
        assert self.stop(world, terminal)
