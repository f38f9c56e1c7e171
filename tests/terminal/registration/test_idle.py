"""A terminal that registers by UDP: with its connection, and without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest
from twisted.internet.address import IPv4Address

from broker.messages.grammar import DEFAULT_EXPIRES, NOTIFY, QUERY
from broker.messages.message import Message
from broker.messages.signing import sign
from broker.messages.statements import PERMITS
from broker.tables.sessions import UNSPENT_SECONDS
from broker.terminal.registration.client import ANSWER_TIMEOUT
from broker.terminal.registration.idle import (
    CHECK_TIMEOUT,
    KEY_INTERVAL,
    NO_HOST,
    NO_KEY,
    RECENT,
    RENEWAL,
    SLOW_TIMEOUT,
)
from broker.terminal.registration.registration import WAKE_UP_INTERVAL
from broker.terminal.registration.udp_keepalive import REPEATS
from broker.terminal.settings import LINGER
from tests.support.clock import advance, settle
from tests.support.log import the_log
from tests.terminal.keys import ANNOUNCEMENT, TERMINATE
from tests.terminal.network import HOST, MEDIATOR_PORT, Listener, Network, Outcome
from tests.terminal.scene import (
    ELSEWHERE,
    PASSWORD,
    SECRET,
    SERVER,
    UdpScene,
    closing,
    holding,
    idle,
)
from tests.terminal.speakers import Echo, Handler, Maker

INTERVAL: Final = 25
KEY: Final = {"Key ID": "Kx", "Registration Key": SECRET.hex(), "Interval": "25"}
NO_PERMITS: Final = "NOTIFY\nAccept:Create\nTransaction:2\nCode:200\n\n"

#: What happens at a scene.
Happens = Callable[[UdpScene], object]


def back(scene: UdpScene) -> str | None:
    """It connects again, and logs in: the token that it shows."""
    scene.come_back()
    return scene.take().get("Token")


def asked_permits(scene: UdpScene) -> bool:
    """Whether it has sent one request over its connection, the harmless one."""
    asked = scene.said()
    return (asked.verb, asked.statement) == (QUERY, PERMITS)


def says(text: str) -> Happens:
    """The mediator says it."""
    return lambda scene: scene.line.type(text)


def passes(seconds: float, *, answered: bool = True) -> Happens:
    """Time passes, in which keepalives are answered."""
    return lambda scene: scene.advance(seconds, answered=answered)


class LoginTests:
    """D1: the key comes with the login, over the connection alone."""

    @pytest.mark.parametrize("address", [None, "192.0.2.7"])
    def test_requested(self, address: str | None) -> None:
        """It asks for a key where it logs in, and says its port, but no address of its own.

        An address that is configured it does register.
        """
        scene = UdpScene(listen=Listener(Network(), 1300), address=address)
        expected = {"Identifier": "Ib", "Password": PASSWORD, "Port": "1300", "UDP": "Yes"}
        more = {} if address is None else {"Address": address}
        assert scene.take().fields == {**expected, **more, "Transaction": "1"}
        assert scene.sent()[0].get("Key ID") == "K0"

    @pytest.mark.parametrize(
        ("udp", "logged"),
        [
            # Without UDP there is nothing of all that.
            (None, ""),
            # A mediator that gives no key leaves it with a connection, which stays open.
            ((None, 1200), NO_KEY),
        ],
    )
    def test_without_a_key(self, udp: Any, logged: str) -> None:
        """It sends no datagrams, and keeps its connection."""
        scene = UdpScene(udp=udp)
        with the_log() as lines:
            assert ("UDP" in scene.take(Key_ID="", Registration_Key="").fields) is (udp is not None)
        scene.advance(100)
        assert (scene.clock.datagrams, scene.line.closed) == ([], False)
        assert any(logged in line for line in lines)

    @pytest.mark.parametrize(
        ("host", "found", "server"),
        [
            # Datagrams go where the mediator is, or to the configured host, by address or name.
            (None, [], HOST),
            ("192.0.2.9", [], "192.0.2.9"),
            ("resolver.example", ["192.0.2.8", "192.0.2.9"], "192.0.2.8"),
            # A name that is not found: the connection stays open.
            ("resolver.example", [], None),
        ],
    )
    def test_where(self, host: str | None, found: list[str], server: str | None) -> None:
        """The address that datagrams go to."""

        class Names:
            """A resolver of names that knows one."""

            def resolveHostName(self, receiver: Any, name: str, **_: Any) -> None:
                """Give the addresses."""
                assert name == "resolver.example"
                receiver.resolutionBegan(None)
                for address in found:
                    receiver.addressResolved(IPv4Address("UDP", address, 0))
                receiver.resolutionComplete()

        scene = UdpScene(udp=(host, 1999))
        scene.clock.nameResolver = Names()  # type: ignore[assignment]
        with the_log() as lines:
            scene.take()
        if server is not None:
            assert scene.port.sent[0][1] == (server, 1999)
        else:
            assert any(NO_HOST.format(host=host) in line for line in lines)
            scene.advance(100)
            assert not scene.line.closed

    def test_stop(self) -> None:
        """It closes its port, and leaves no timer behind."""
        scene = idle()
        outcome = Outcome(scene.terminal.stopService())
        settle(scene.clock)
        assert (outcome.done, scene.port.listening) == (True, False)
        assert scene.clock.getDelayedCalls() == []


class IdleTests:
    """D4, D5, E1: between calls there are datagrams and no connection."""

    @pytest.mark.parametrize(
        ("options", "steps", "closing"),
        [
            # A terminal that is configured to hold its connection does.
            ({"hold": True}, [passes(200)], None),
            # It stays open for as long as configured, and longer when something is asked.
            ({"linger": 4}, [passes(3), UdpScene.ask_status, passes(3)], passes(2)),
            ({}, [passes(LINGER - 2), UdpScene.notify, says(NO_PERMITS), passes(3)], None),
            # Until a datagram is answered it stays open: else the terminal could not be reached.
            ({}, [passes(LINGER + 5, answered=False)], None),
            # A call that was announced, and may come, keeps it open, until it is void (I7).
            ({}, [says(ANNOUNCEMENT), passes(LINGER + 1), says(TERMINATE)], passes(LINGER + 1)),
            (
                {"linger": 2},
                [passes(1), says(ANNOUNCEMENT), passes(UNSPENT_SECONDS - 1)],
                passes(4),
            ),
        ],
    )
    def test_closes(
        self, options: dict[str, Any], steps: list[Happens], closing: Happens | None
    ) -> None:
        """With nothing to do it closes its connection; not earlier, and not later."""
        scene = UdpScene(handler=Handler(Echo), **options)
        scene.take()
        for happens in steps:
            happens(scene)
            assert not scene.line.closed
        if closing is not None:
            closing(scene)
            assert scene.line.closed

    def test_calls(self) -> None:
        """A call from it makes the connection, which stays open while it is being placed."""
        scene = idle()
        calling = Outcome(scene.terminal.call("Ia", Maker()))
        settle(scene.clock)
        assert scene.dialling
        assert back(scene) == "t1"
        assert scene.said().verb == QUERY
        scene.advance(8)
        assert not scene.line.closed
        scene.answer("Permission Denied.", 403)
        settle(scene.clock)
        assert calling.done
        scene.advance(LINGER + 1)
        assert scene.line.closed

    def test_called_for_while_closing(self) -> None:
        """What is requested while the connection closes goes over the next one."""
        scene = closing()
        calling = Outcome(scene.terminal.call("Ia", Maker()))
        scene.advance(1)
        assert not scene.dialling
        scene.line.transport.resume_reading_peer()
        back(scene)
        assert (scene.said().verb, calling.done) == (QUERY, False)

    @pytest.mark.parametrize(
        ("before", "then"),
        [
            # Before its key expires.
            (passes(RENEWAL * DEFAULT_EXPIRES - 2), passes(4)),
            # After three keepalives without an answer (E1).
            (passes(1), passes(INTERVAL + sum(REPEATS) + 1, answered=False)),
            # At once, upon a notice.
            (passes(10 * INTERVAL), UdpScene.notify),
        ],
    )
    def test_connects(self, before: Happens, then: Happens) -> None:
        """It connects and logs in by its token; with nothing to do, it closes the connection."""
        scene = idle()
        before(scene)
        assert not scene.dialling
        assert Outcome(scene.terminal.ready()).done  # it is registered by UDP
        then(scene)
        assert scene.dialling
        assert back(scene) == "t1"
        assert scene.sent()[-1].get("Key ID") == "K1"
        scene.advance(LINGER + 2)
        assert scene.line.closed
        scene.notify()
        assert scene.dialling

    def test_keepalives_fail_while_connected(self) -> None:
        """With a connection it requests another key there; once a minute, however long it lasts."""
        scene = holding()
        asked = []
        for _ in range(600):
            scene.advance(1, answered=False)
            for message in scene.line.received():
                asked.append(message)
                scene.complete(**KEY)
        assert {message.get("UDP") for message in asked} == {"Yes"}
        assert 2 <= len(asked) <= 600 / KEY_INTERVAL
        assert not scene.line.closed

    @pytest.mark.parametrize("answered", [True, False])
    def test_no_other_key(self, answered: bool) -> None:
        """Where it gets none, refused or not even answered, it makes another connection."""
        scene = holding()
        while not scene.line.received():
            scene.advance(1, answered=False)
        if answered:
            scene.answer("Service Unavailable.", 503)
        else:
            scene.advance(ANSWER_TIMEOUT + 1, answered=False)
        assert scene.line.closed

    @pytest.mark.parametrize("alive", [True, False])
    def test_seen_elsewhere(self, alive: bool) -> None:
        """Seen elsewhere, it asks over its connection, and makes another where that is dead."""
        scene = UdpScene(hold=True)
        scene.take()
        scene.answer_datagrams()
        scene.look(61001)
        assert scene.line.received() == []
        scene.advance(INTERVAL)
        message = scene.sent()[-1]
        challenge = Message(NOTIFY, Challenge="c", Sequence=message.fields["Sequence"])
        scene.port.receive(sign(challenge, SECRET), SERVER)
        scene.answer_datagrams()
        scene.look(61002)
        assert asked_permits(scene)
        if alive:
            scene.line.type(NO_PERMITS)
        scene.advance(CHECK_TIMEOUT + 1)
        assert scene.line.closed is not alive

    def test_superseded(self) -> None:
        """Once another connection is reached in its place, it does not take that back so."""
        scene = holding()
        scene.line.type("NOTIFY\nSuperseded.\n\n")
        scene.advance(600, answered=False)
        assert scene.line.received() == []

    def test_the_network_is_back(self) -> None:
        """An answered keepalive says so: it does not wait longer to connect."""
        scene = holding()
        scene.line.vanish()
        for _ in range(8):
            scene.advance(20, answered=False)
            scene.refuse_dials()
        assert not scene.dialling
        before = scene.dials
        scene.port.sent.clear()
        while not scene.answer_datagrams():
            advance(scene.clock, 0.5)
            scene.refuse_dials()
            before = scene.dials
        settle(scene.clock)
        assert scene.dials == before + 1


class NoticeTests:
    """D4, D5, E2, E3, I26: a notice makes it connect to its own mediator, and nothing else."""

    @pytest.mark.parametrize(
        ("ago", "answer", "after", "patience"),
        [
            # A mediator that requests a connection has none: a silent one is made again, in time
            # for the call that needs it. One over which something has just arrived is slow rather
            # than dead, and has longer.
            (None, None, 0, CHECK_TIMEOUT),
            (0, None, 0, SLOW_TIMEOUT),
            (1.25, None, 0, SLOW_TIMEOUT),
            (RECENT, None, 0, CHECK_TIMEOUT),
            # It stays where its answer arrives within that time, or anything else has.
            (None, says(NO_PERMITS), 1.25, None),
            (0, says(NO_PERMITS), 4, None),
            (None, UdpScene.ask_status, 1.25, None),
        ],
    )
    def test_while_connected(
        self, ago: float | None, answer: Happens | None, after: float, patience: float | None
    ) -> None:
        """With a connection it asks whether that is dead, once.

        :param ago: seconds since something arrived over it
        :param patience: seconds after which another one is made
        """
        assert (RECENT, CHECK_TIMEOUT, SLOW_TIMEOUT) == (1.5, 1.5, 5)
        scene = holding()
        if ago is not None:
            scene.ask_status()
            advance(scene.clock, ago)
        scene.line.received()
        dials = scene.dials
        scene.notify()
        scene.notify()
        assert asked_permits(scene)
        if answer is not None:
            advance(scene.clock, after)
            answer(scene)
        advance(scene.clock, 10 if patience is None else patience - 0.25)
        assert not scene.line.closed
        if patience is not None:
            advance(scene.clock, 0.25)
            assert back(scene) == "t1"
            dials += 1
        assert scene.dials == dials

    def test_while_closing(self) -> None:
        """One that arrives while the connection closes is not lost."""
        scene = closing()
        scene.notify()
        assert not scene.dialling
        scene.line.transport.resume_reading_peer()
        settle(scene.clock)
        assert scene.dialling

    def test_ignored(self) -> None:
        """A replayed one does nothing (E3), as all that the keepalive ignores."""
        scene = idle()
        old = scene.notify()
        back(scene)
        scene.advance(LINGER + 2)
        scene.port.receive(old, SERVER)
        scene.notify(key=b"x" * 32)
        scene.advance(5)
        assert not scene.dialling

    def test_flood(self) -> None:
        """However many valid ones arrive, it dials once a second (I16)."""
        scene = idle()
        dials = scene.dials
        for _ in range(50):
            scene.notify()
            scene.refuse_dials()
            advance(scene.clock, 0.1)
        assert scene.dials - dials <= 5 / WAKE_UP_INTERVAL + 5

    def test_no_more_than_that(self) -> None:
        """Whatever else a signed notice has in it is not looked at: no address, no call."""
        scene = idle()
        scene.notify(Address=ELSEWHERE, Caller_ID="Ix")
        (dial,) = scene.open_dials()
        assert (dial.host, dial.port) == (HOST, MEDIATOR_PORT)
        assert not scene.terminal.busy()
