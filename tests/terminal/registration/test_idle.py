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
from broker.terminal.registration.client import ANSWER_TIMEOUT, SECRET_IN_CLEAR
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
from tests.terminal.network import Listener, Network, Outcome
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
ANNOUNCEMENT: Final = (
    f"NOTIFY\nCaller ID:Ia\nPassword:pppppppp\nEncrypt Key:{'00' * 32}\nSession:S1\n"
    "Expires:60\nReply Password:rrrrrrrr\n\n"
)
NO_PERMITS: Final = "NOTIFY\nAccept:Create\nTransaction:2\nCode:200\n\n"


def logged(lines: list[str], text: str) -> bool:
    """Whether something was logged."""
    return any(text in line for line in lines)


def back(scene: UdpScene) -> str | None:
    """It connects again, and logs in: the token that it shows."""
    scene.come_back()
    return scene.take().get("Token")


def asked_permits(scene: UdpScene) -> bool:
    """Whether the one thing that it has asked on its line is the harmless one."""
    asked = scene.said()
    return (asked.verb, asked.statement) == (QUERY, PERMITS)


class LoginTests:
    """D1: the key comes with the login, over the line alone."""

    def test_asked_for(self) -> None:
        """It asks for a key where it logs in, and says its port, but no address of its own."""
        scene = UdpScene(listen=Listener(Network(), 1300))
        assert scene.take().fields == {
            "Identifier": "Ib",
            "Password": PASSWORD,
            "Port": "1300",
            "UDP": "Yes",
            "Transaction": "1",
        }
        assert scene.sent()[0].get("Key ID") == "K0"

    def test_address(self) -> None:
        """An address that it is told to register it does register."""
        scene = UdpScene(listen=Listener(Network(), 1300), address="192.0.2.7")
        assert scene.take().get("Address") == "192.0.2.7"

    def test_not_asked_for(self) -> None:
        """Without UDP there is nothing of all that."""
        scene = UdpScene(udp=None, hold=True)
        assert "UDP" not in scene.take().fields
        scene.advance(100)
        assert scene.clock.datagrams == []
        assert not scene.line.closed

    @pytest.mark.parametrize(
        ("udp", "server"), [((None, 1200), SERVER), (("192.0.2.9", 1999), ("192.0.2.9", 1999))]
    )
    def test_where(self, udp: Any, server: tuple[str, int]) -> None:
        """Datagrams go where the mediator is, or where they are said to go."""
        scene = UdpScene(udp=udp)
        scene.take()
        assert scene.port.sent[0][1] == server

    @pytest.mark.parametrize("found", [[], ["192.0.2.8", "192.0.2.9"]])
    def test_by_name(self, found: list[str]) -> None:
        """A name is asked for; where there is no such, the line is held."""

        class Names:
            """A resolver of names that knows one."""

            def resolveHostName(self, receiver: Any, name: str, **_: Any) -> None:
                """Give the addresses."""
                assert name == "resolver.example"
                receiver.resolutionBegan(None)
                for host in found:
                    receiver.addressResolved(IPv4Address("UDP", host, 0))
                receiver.resolutionComplete()

        scene = UdpScene(udp=("resolver.example", 1200))
        names: Any = Names()
        scene.clock.nameResolver = names
        with the_log() as lines:
            scene.take()
        if found:
            assert scene.port.sent[0][1] == ("192.0.2.8", 1200)
        else:
            assert logged(lines, NO_HOST.format(host="resolver.example"))
            scene.advance(100)
            assert not scene.line.closed

    def test_no_key(self) -> None:
        """A mediator that gives no key leaves it with a line, which it keeps."""
        scene = UdpScene()
        with the_log() as lines:
            scene.take(Key_ID="", Registration_Key="")
        assert logged(lines, NO_KEY)
        scene.advance(100)
        assert not scene.line.closed

    def test_clear_text(self) -> None:
        """No key is asked for where others could read it (I25)."""
        with the_log() as lines:
            scene = UdpScene(password=None, host=ELSEWHERE)
            assert scene.line.received() == []
        assert logged(lines, SECRET_IN_CLEAR)

    def test_key_of_the_last_login(self) -> None:
        """Each login's key takes the place of the one before."""
        scene = holding()
        scene.sent()
        scene.lose()
        scene.take()
        assert [message.get("Key ID") for message in scene.sent()] == ["K1"]

    def test_stop(self) -> None:
        """It closes its port, and leaves no timer behind."""
        scene = idle()
        outcome = Outcome(scene.terminal.stopService())
        settle(scene.clock)
        assert outcome.done
        assert not scene.port.listening
        assert scene.clock.getDelayedCalls() == []


class IdleTests:
    """D4, D5, E1: between calls there are datagrams and no connection."""

    def test_closed(self) -> None:
        """With nothing to do it closes its line, and stays registered by UDP."""
        scene = idle()
        dials = scene.dials
        scene.advance(10 * INTERVAL)
        assert scene.dials == dials
        assert Outcome(scene.terminal.ready()).done

    def test_held(self) -> None:
        """A terminal that is to hold its line does."""
        scene = holding()
        scene.advance(200)
        assert not scene.line.closed

    def test_linger(self) -> None:
        """It keeps the line for as long as it is told to, and longer when something is asked."""
        scene = UdpScene(linger=4)
        scene.take()
        scene.advance(3)
        scene.ask_status()
        scene.advance(3)
        assert not scene.line.closed
        scene.advance(2)
        assert scene.line.closed

    def test_not_before_it_is_heard(self) -> None:
        """As long as no datagram is answered it holds the line: else nobody could reach it."""
        scene = UdpScene()
        scene.take()
        scene.advance(LINGER + 5, answered=False)
        assert not scene.line.closed

    def test_while_a_call_comes(self) -> None:
        """A call that was announced, and may come, keeps it."""
        scene = holding(hold=False, handler=Handler(Echo))
        scene.line.type(ANNOUNCEMENT)
        scene.advance(LINGER + 1)
        assert not scene.line.closed
        scene.line.type("NOTIFY\nSession:S1\nTerminate.\n\n")
        scene.advance(LINGER + 1)
        assert scene.line.closed

    def test_while_a_call_does_not_come(self) -> None:
        """One that has not come by the time that it is void keeps it no longer (I7)."""
        scene = UdpScene(handler=Handler(Echo), linger=2)
        scene.take()
        scene.advance(1)
        scene.line.type(ANNOUNCEMENT)
        scene.advance(UNSPENT_SECONDS - 1)
        assert not scene.line.closed
        scene.advance(4)
        assert scene.line.closed

    def test_calls(self) -> None:
        """Whoever calls from it has the line made, which stays while the call is being placed."""
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
        """What is asked for while the line closes goes over the next one."""
        scene = closing()
        calling = Outcome(scene.terminal.call("Ia", Maker()))
        scene.advance(1)
        assert not scene.dialling
        scene.line.transport.resume_reading_peer()
        back(scene)
        assert scene.said().verb == QUERY
        assert not calling.done

    def test_before_the_key_expires(self) -> None:
        """It logs in again by itself before its key expires, by its token."""
        scene = idle()
        scene.advance(RENEWAL * DEFAULT_EXPIRES - 2)
        assert not scene.dialling
        scene.advance(4)
        assert scene.dialling
        assert back(scene) == "t1"
        assert scene.sent()[-1].get("Key ID") == "K1"

    def test_keepalives_fail(self) -> None:
        """Three that stay without an answer, and it connects and logs in again (E1)."""
        scene = idle()
        scene.advance(INTERVAL + sum(REPEATS) + 1, answered=False)
        assert scene.dialling
        assert back(scene) == "t1"
        scene.advance(LINGER + 2)
        assert scene.line.closed

    def test_keepalives_fail_on_the_line(self) -> None:
        """With a line it asks for another key there; once a minute, however long that lasts."""
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
        """Where it gets none, be it refused or not even answered, it makes another line."""
        scene = holding()
        while not scene.line.received():
            scene.advance(1, answered=False)
        if answered:
            scene.answer("Service Unavailable.", 503)
        else:
            scene.advance(ANSWER_TIMEOUT + 1, answered=False)
        assert scene.line.closed

    @pytest.mark.parametrize("alive", [True, False])
    def test_looks_otherwise(self, alive: bool) -> None:
        """Seen elsewhere, it asks on its line, and makes another where nothing comes back."""
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

    def test_connects(self) -> None:
        """It connects at once, and logs in by its token; when nothing is to be done any more, it
        closes the line again.
        """
        scene = idle()
        scene.notify()
        assert scene.dialling
        assert back(scene) == "t1"
        scene.advance(LINGER + 2)
        assert scene.line.closed
        scene.notify()
        assert scene.dialling

    def test_while_connected(self) -> None:
        """With a line it sees that this is not dead, and keeps it."""
        scene = UdpScene()
        scene.take()
        scene.advance(LINGER - 2)
        dials = scene.dials
        scene.notify()
        scene.notify()
        assert asked_permits(scene)
        scene.line.type(NO_PERMITS)
        scene.advance(3)
        assert scene.dials == dials
        assert not scene.line.closed

    def test_dead_line(self) -> None:
        """A mediator that asks for a connection has none: a line that is silent is made again, in
        time for the call that asks for it.
        """
        scene = holding()
        scene.notify()
        scene.advance(1)
        assert not scene.line.closed
        scene.advance(0.5)
        assert back(scene) == "t1"

    @pytest.mark.parametrize(
        ("ago", "patience"), [(0, SLOW_TIMEOUT), (1.25, SLOW_TIMEOUT), (RECENT, CHECK_TIMEOUT)]
    )
    def test_slow_line(self, ago: float, patience: float) -> None:
        """One over which something came of late is slow rather than dead, and has longer."""
        assert (RECENT, CHECK_TIMEOUT, SLOW_TIMEOUT) == (1.5, 1.5, 5)
        scene = holding()
        scene.ask_status()
        advance(scene.clock, ago)
        scene.notify()
        advance(scene.clock, patience - 0.25)
        assert not scene.line.closed
        advance(scene.clock, 0.25)
        assert back(scene) == "t1"

    def test_slow_answer(self) -> None:
        """The line stays where its answer comes within that time."""
        scene = holding()
        scene.ask_status()
        scene.notify()
        scene.advance(4)
        scene.line.type(NO_PERMITS)
        scene.advance(3)
        assert not scene.line.closed

    def test_sign_of_life(self) -> None:
        """It stays where anything has come since it was asked, though the answer be late."""
        scene = holding()
        scene.notify()
        scene.advance(CHECK_TIMEOUT - 0.25)
        scene.ask_status()
        scene.advance(3)
        assert not scene.line.closed

    def test_while_closing(self) -> None:
        """One that comes while the line closes is not lost."""
        scene = closing()
        scene.notify()
        assert not scene.dialling
        scene.line.transport.resume_reading_peer()
        settle(scene.clock)
        assert scene.dialling

    def forged(self, scene: UdpScene) -> None:
        """It is signed with another key."""
        scene.notify(key=b"x" * 32)

    def replayed(self, scene: UdpScene) -> None:
        """It has come before."""
        old = scene.notify()
        back(scene)
        scene.advance(LINGER + 2)
        scene.port.receive(old, SERVER)

    def misdirected(self, scene: UdpScene) -> None:
        """It is for another key."""
        scene.keys.append("Kother")
        scene.notify()

    @pytest.mark.parametrize("send", [forged, replayed, misdirected])
    def test_ignored(self, send: Callable[[Any, UdpScene], None]) -> None:
        """Forged, replayed and misdirected ones do nothing (E3)."""
        scene = idle()
        send(self, scene)
        scene.advance(5)
        assert not scene.dialling
        keepalive = scene.terminal._registration._idle.keepalive  # type: ignore[union-attr]
        assert keepalive is not None
        assert keepalive.ignored.total() == 1

    def test_flood(self) -> None:
        """However many genuine ones come, it dials once a second at the most (I16)."""
        scene = idle()
        dials = scene.dials
        for _ in range(50):
            scene.notify()
            scene.refuse_dials()
            advance(scene.clock, 0.1)
        assert scene.dials - dials <= 5 / WAKE_UP_INTERVAL + 5

    def test_no_more_than_that(self) -> None:
        """Whatever else a signed notice holds is not looked at: no address, no call."""
        scene = idle()
        scene.notify(Address=ELSEWHERE, Caller_ID="Ix")
        (dial,) = scene.open_dials()
        assert (dial.host, dial.port) == ("127.0.0.1", 1201)
        assert not scene.terminal.busy()
