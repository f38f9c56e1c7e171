"""A terminal that registers by UDP: with its line, and without it."""

from __future__ import annotations

from typing import Any, Final

import pytest
from twisted.internet.address import IPv4Address

from broker.messages.datagram import parse_datagram
from broker.messages.grammar import DEFAULT_EXPIRES, NOTIFY, QUERY, REGISTER
from broker.messages.message import Message
from broker.messages.signing import sign
from broker.messages.statements import CONNECTION_REQUESTED, PERMITS, REGISTRATION_COMPLETED
from broker.tables.sessions import UNSPENT_SECONDS
from broker.terminal.registration.client import ANSWER_TIMEOUT
from broker.terminal.registration.idle import (
    CHECK_TIMEOUT,
    KEY_INTERVAL,
    RECENT,
    RENEWAL,
    SLOW_TIMEOUT,
)
from broker.terminal.registration.registration import WAKE_UP_INTERVAL
from broker.terminal.registration.udp_keepalive import REPEATS
from broker.terminal.settings import LINGER
from tests.support.clock import advance, settle
from tests.terminal.network import Listener, Network, Outcome
from tests.terminal.speakers import Echo, Handler, Maker
from tests.terminal.test_doors import the_log
from tests.terminal.test_login import ELSEWHERE, PASSWORD, Script

SERVER: Final = ("127.0.0.1", 1200)
SECRET: Final = b"s" * 32
INTERVAL: Final = 25
KEY: Final = {"Key ID": "Kx", "Registration Key": SECRET.hex(), "Interval": "25"}


class Scene(Script):
    """A terminal, and a person who plays its mediator and its resolver.

    :ivar keys: the names of the keys that were given out
    """

    def __init__(self, **options: Any) -> None:
        self.keys: list[str] = []
        self.told = 1000
        super().__init__(**{"udp": (None, 1200), "hold": False, **options})

    @property
    def port(self) -> Any:
        """The terminal's UDP port."""
        return self.clock.datagrams[-1]

    def take(self, **fields: str) -> Message:
        """Take the login, and give out a key; return what was said."""
        said = self.said()
        self.keys.append(f"K{len(self.keys)}")
        key = {"Key_ID": self.keys[-1], "Registration_Key": SECRET.hex(), "Interval": "25"}
        fields = {"Epoch": "e1", "Token": f"t{len(self.keys)}", **key, **fields}
        self.complete(**{name.replace("_", " "): value for name, value in fields.items() if value})
        settle(self.clock)
        return said

    def sent(self) -> list[Message]:
        """The datagrams that came by now."""
        sent, self.port.sent[:] = [parse_datagram(data) for data, _ in self.port.sent], []
        return sent

    def look(self, port: int) -> None:
        """Tell it how it looks from outside, as it has asked."""
        question = [message for message in self.sent() if message.verb == QUERY][-1]
        answer = Message(NOTIFY, Address="192.0.2.1", Port=port)
        answer.fields["Transaction"] = question.fields["Transaction"]
        self.port.receive(answer.encode(), SERVER)
        settle(self.clock)

    def answer_datagrams(self) -> int:
        """Answer all that came; return how many there were."""
        sent = [message for message in self.sent() if message.verb == REGISTER]
        for message in sent:
            answer = Message(NOTIFY, REGISTRATION_COMPLETED, Sequence=message.fields["Sequence"])
            self.port.receive(sign(answer, SECRET), SERVER)
        return len(sent)

    def advance(self, seconds: float, *, answered: bool = True) -> None:
        """Let time pass, in which keepalives are answered."""
        for _ in range(round(seconds * 2)):
            if answered and self.clock.datagrams and self.port.listening:
                self.answer_datagrams()
            advance(self.clock, 0.5)

    def notify(self, sequence: int | None = None, key: bytes = SECRET) -> bytes:
        """Send a notice; return it."""
        self.told += 1
        notice = Message(NOTIFY, CONNECTION_REQUESTED, Identifier="Ib")
        notice.fields["Key ID"] = self.keys[-1]
        notice.fields["Sequence"] = str(sequence or self.told)
        datagram = sign(notice, key)
        self.port.receive(datagram, SERVER)
        settle(self.clock)
        return datagram

    @property
    def dials(self) -> int:
        """How often it has dialled its mediator."""
        return len(self.clock.dials)

    @property
    def dialling(self) -> Any:
        """Whether it dials just now."""
        return any(not dial.over for dial in self.clock.dials)


def quiet(**options: Any) -> Scene:
    """A terminal that has logged in, registered by UDP, and closed its line."""
    scene = Scene(**options)
    scene.take()
    scene.advance(LINGER + 1)
    assert scene.line.closed
    return scene


def closing() -> Scene:
    """One that is about to close its line, of which the mediator has not read all."""
    scene = Scene(linger=2)
    scene.take()
    scene.advance(1)
    scene.line.transport.stop_reading_peer()
    scene.line.type("QUERY\nSTATUS\nTransaction:9\n\n")
    scene.advance(2.5)
    assert scene.line.transport.disconnecting
    assert not scene.line.closed
    return scene


class LoginTests:
    """D1: the key comes with the login, over the line alone."""

    def test_asked_for(self) -> None:
        """It asks for a key where it logs in, and says its port, but no address of its own."""
        network = Network()
        scene = Scene(listen=Listener(network, 1300))
        said = scene.take()
        assert said.fields == {
            "Identifier": "Ib",
            "Password": PASSWORD,
            "Port": "1300",
            "UDP": "Yes",
            "Transaction": "1",
        }
        assert scene.sent()[0].get("Key ID") == "K0"

    def test_address(self) -> None:
        """An address that it is told to register it does register."""
        scene = Scene(listen=Listener(Network(), 1300), address="192.0.2.7")
        assert scene.take().get("Address") == "192.0.2.7"

    def test_not_asked_for(self) -> None:
        """Without UDP there is nothing of all that."""
        scene = Scene(udp=None, hold=True)
        assert "UDP" not in scene.take().fields
        scene.advance(100)
        assert scene.clock.datagrams == []
        assert not scene.line.closed

    def test_where(self) -> None:
        """Datagrams go where the mediator is, or where they are said to go."""
        scene = Scene()
        scene.take()
        assert scene.port.sent[0][1] == ("127.0.0.1", 1200)
        scene = Scene(udp=("192.0.2.9", 1999))
        scene.take()
        assert scene.port.sent[0][1] == ("192.0.2.9", 1999)

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

        scene = Scene(udp=("resolver.example", 1200))
        names: Any = Names()
        scene.clock.nameResolver = names
        with the_log() as lines:
            scene.take()
        if found:
            assert scene.port.sent[0][1] == ("192.0.2.8", 1200)
        else:
            assert any("resolver.example is not in DNS" in line for line in lines)
            scene.advance(100)
            assert not scene.line.closed

    def test_no_key(self) -> None:
        """A mediator that gives no key leaves it with a line, which it keeps."""
        scene = Scene()
        with the_log() as lines:
            scene.take(Key_ID="", Registration_Key="")
        assert any("gave no key" in line for line in lines)
        scene.advance(100)
        assert not scene.line.closed

    def test_clear_text(self) -> None:
        """No key is asked for where others could read it (I25)."""
        with the_log() as lines:
            scene = Scene(password=None, host=ELSEWHERE)
            assert scene.line.received() == []
        assert any("could not log in" in line and "in clear text" in line for line in lines)

    def test_key_of_the_last_login(self) -> None:
        """Each login's key takes the place of the one before."""
        scene = Scene(hold=True)
        scene.take()
        scene.advance(1)
        scene.sent()
        scene.lose()
        scene.take()
        assert [message.get("Key ID") for message in scene.sent()] == ["K1"]

    def test_stop(self) -> None:
        """It closes its port, and leaves no timer behind."""
        scene = quiet()
        outcome = Outcome(scene.terminal.stopService())
        settle(scene.clock)
        assert outcome.done
        assert not scene.port.listening
        assert scene.clock.getDelayedCalls() == []


class QuietTests:
    """D4, D5, E1: between calls there are datagrams and no connection."""

    def test_closed(self) -> None:
        """With nothing to do it closes its line, and stays registered by UDP."""
        scene = quiet()
        dials = scene.dials
        scene.sent()
        scene.advance(10 * INTERVAL, answered=True)
        assert scene.dials == dials
        assert Outcome(scene.terminal.ready()).done

    def test_held(self) -> None:
        """A terminal that is to hold its line does."""
        scene = Scene(hold=True)
        scene.take()
        scene.advance(200)
        assert not scene.line.closed

    def test_linger(self) -> None:
        """It keeps the line for as long as it is told to, and longer when something is asked."""
        scene = Scene(linger=4)
        scene.take()
        scene.advance(3)
        scene.line.type("QUERY\nSTATUS\nTransaction:9\n\n")
        scene.advance(3)
        assert not scene.line.closed
        scene.advance(2)
        assert scene.line.closed

    def test_not_before_it_is_heard(self) -> None:
        """As long as no datagram is answered it holds the line: else nobody could reach it."""
        scene = Scene()
        scene.take()
        scene.advance(5, answered=False)
        assert not scene.line.closed
        scene.advance(LINGER, answered=False)
        assert not scene.line.closed

    def test_while_a_call_comes(self) -> None:
        """A call that was announced, and may come, keeps it."""
        scene = Scene(handler=Handler(Echo))
        scene.take()
        scene.advance(5)
        scene.line.type(
            "NOTIFY\nCaller ID:Ia\nPassword:pppppppp\nEncrypt Key:" + "00" * 32 + "\nSession:S1\n"
            "Expires:60\nReply Password:rrrrrrrr\n\n"
        )
        scene.advance(LINGER + 1)
        assert not scene.line.closed
        scene.line.type("NOTIFY\nSession:S1\nTerminate.\n\n")
        scene.advance(LINGER + 1)
        assert scene.line.closed

    def test_while_a_call_does_not_come(self) -> None:
        """One that has not come by the time that it is void keeps it no longer (I7)."""
        scene = Scene(handler=Handler(Echo), linger=2)
        scene.take()
        scene.advance(1)
        scene.line.type(
            "NOTIFY\nCaller ID:Ia\nPassword:pppppppp\nEncrypt Key:" + "00" * 32 + "\nSession:S1\n"
            "Expires:60\nReply Password:rrrrrrrr\n\n"
        )
        scene.advance(UNSPENT_SECONDS - 1)
        assert not scene.line.closed
        scene.advance(4)
        assert scene.line.closed

    def test_calls(self) -> None:
        """Whoever calls from it has the line made, which stays while the call is being placed."""
        scene = quiet()
        calling = Outcome(scene.terminal.call("Ia", Maker()))
        settle(scene.clock)
        assert scene.dialling
        scene.come_back()
        assert scene.take().get("Token") == "t1"
        assert [message.verb for message in scene.line.received()] == ["QUERY"]
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
        scene.come_back()
        scene.take()
        assert [message.verb for message in scene.line.received()] == ["QUERY"]
        assert not calling.done

    def test_before_the_key_expires(self) -> None:
        """It logs in again by itself before its key expires, by its token."""
        scene = quiet()
        scene.advance(RENEWAL * DEFAULT_EXPIRES - 2)
        assert not scene.dialling
        scene.advance(4)
        assert scene.dialling
        scene.come_back()
        assert scene.take().get("Token") == "t1"
        assert scene.sent()[-1].get("Key ID") == "K1"

    def test_keepalives_fail(self) -> None:
        """Three that stay without an answer, and it connects and logs in again (E1)."""
        scene = quiet()
        scene.advance(INTERVAL + sum(REPEATS) + 1, answered=False)
        assert scene.dialling
        scene.come_back()
        assert scene.take().get("Token") == "t1"
        scene.advance(LINGER + 2)
        assert scene.line.closed

    def test_keepalives_fail_on_the_line(self) -> None:
        """With a line it asks for another key there; once a minute, however long that lasts."""
        scene = Scene(hold=True)
        scene.take()
        scene.advance(5)
        asked = []
        for _ in range(600):
            scene.advance(1, answered=False)
            for message in scene.line.received():
                asked.append(message)
                scene.answer("Registration Completed.", 200, **KEY)
        assert {message.get("UDP") for message in asked} == {"Yes"}
        assert 2 <= len(asked) <= 600 / KEY_INTERVAL
        assert not scene.line.closed

    def test_no_other_key(self) -> None:
        """Where it gets none, be it refused or not even answered, it makes another line."""
        for answered in (True, False):
            scene = Scene(hold=True)
            scene.take()
            scene.advance(5)
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
        scene = Scene(hold=True)
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
        (asked,) = scene.line.received()
        assert (asked.verb, asked.statement) == (QUERY, PERMITS)
        if alive:
            scene.line.type("NOTIFY\nAccept:Create\nTransaction:2\nCode:200\n\n")
        scene.advance(CHECK_TIMEOUT + 1)
        assert scene.line.closed is not alive

    def test_superseded(self) -> None:
        """Once another connection is reached in its place, it does not take that back so."""
        scene = Scene(hold=True)
        scene.take()
        scene.advance(5)
        scene.line.type("NOTIFY\nSuperseded.\n\n")
        scene.advance(600, answered=False)
        assert scene.line.received() == []

    def test_the_network_is_back(self) -> None:
        """An answered keepalive says so: it does not wait longer to connect."""
        scene = Scene(hold=True)
        scene.take()
        scene.advance(5)
        scene.line.vanish()
        for _ in range(8):
            scene.advance(20, answered=False)
            for dial in [dial for dial in scene.clock.dials if not dial.over]:
                dial.refuse()
        assert not scene.dialling
        before = scene.dials
        scene.port.sent.clear()
        while not scene.answer_datagrams():
            advance(scene.clock, 0.5)
            for dial in [dial for dial in scene.clock.dials if not dial.over]:
                dial.refuse()
            before = scene.dials
        settle(scene.clock)
        assert scene.dials == before + 1


class NoticeTests:
    """D4, D5, E2, E3, I26: a notice makes it connect to its own mediator, and nothing else."""

    def test_connects(self) -> None:
        """It connects at once, and logs in by its token."""
        scene = quiet()
        scene.notify()
        assert scene.dialling
        scene.come_back()
        assert scene.take().get("Token") == "t1"

    def test_goes_quiet_again(self) -> None:
        """When nothing is to be done any more, it closes the line again."""
        scene = quiet()
        scene.notify()
        scene.come_back()
        scene.take()
        scene.advance(LINGER + 2)
        assert scene.line.closed
        scene.notify()
        assert scene.dialling

    def test_while_connected(self) -> None:
        """With a line it sees that this is not dead, and keeps it."""
        scene = Scene()
        scene.take()
        scene.advance(LINGER - 2)
        dials = scene.dials
        scene.notify()
        scene.notify()
        (asked,) = scene.line.received()
        assert (asked.verb, asked.statement) == (QUERY, PERMITS)
        scene.line.type("NOTIFY\nAccept:Create\nTransaction:2\nCode:200\n\n")
        scene.advance(3)
        assert scene.dials == dials
        assert not scene.line.closed

    def test_dead_line(self) -> None:
        """A mediator that asks for a connection has none: a line that is silent is made again, in
        time for the call that asks for it.
        """
        scene = Scene(hold=True)
        scene.take()
        scene.advance(5)
        scene.notify()
        scene.advance(1)
        assert not scene.line.closed
        scene.advance(0.5)
        scene.come_back()
        assert scene.take().get("Token") == "t1"

    @pytest.mark.parametrize(
        ("ago", "patience"), [(0, SLOW_TIMEOUT), (1.25, SLOW_TIMEOUT), (RECENT, CHECK_TIMEOUT)]
    )
    def test_slow_line(self, ago: float, patience: float) -> None:
        """One over which something came of late is slow rather than dead, and has longer."""
        assert (RECENT, CHECK_TIMEOUT, SLOW_TIMEOUT) == (1.5, 1.5, 5)
        scene = Scene(hold=True)
        scene.take()
        scene.advance(10)
        scene.line.type("QUERY\nSTATUS\nTransaction:9\n\n")
        advance(scene.clock, ago)
        scene.notify()
        advance(scene.clock, patience - 0.25)
        assert not scene.line.closed
        advance(scene.clock, 0.25)
        scene.come_back()
        assert scene.take().get("Token") == "t1"

    def test_slow_answer(self) -> None:
        """The line stays where its answer comes within that time."""
        scene = Scene(hold=True)
        scene.take()
        scene.advance(10)
        scene.line.type("QUERY\nSTATUS\nTransaction:9\n\n")
        scene.notify()
        scene.advance(4)
        scene.line.type("NOTIFY\nAccept:Create\nTransaction:2\nCode:200\n\n")
        scene.advance(3)
        assert not scene.line.closed

    def test_sign_of_life(self) -> None:
        """It stays where anything has come since it was asked, though the answer be late."""
        scene = Scene(hold=True)
        scene.take()
        scene.advance(10)
        scene.notify()
        scene.advance(CHECK_TIMEOUT - 0.25)
        scene.line.type("QUERY\nSTATUS\nTransaction:9\n\n")
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

    @pytest.mark.parametrize("how", ["forged", "replayed", "misdirected"])
    def test_ignored(self, how: str) -> None:
        """Forged, replayed and misdirected ones do nothing (E3)."""
        scene = quiet()
        dials = scene.dials
        if how == "forged":
            scene.notify(key=b"x" * 32)
        elif how == "replayed":
            old = scene.notify()
            scene.come_back()
            scene.take()
            scene.advance(LINGER + 2)
            dials = scene.dials
            scene.port.receive(old, SERVER)
        else:
            scene.keys.append("Kother")
            scene.notify()
        scene.advance(5)
        assert scene.dials == dials
        keepalive = scene.terminal._registration._idle.keepalive  # type: ignore[union-attr]
        assert keepalive is not None
        assert keepalive.ignored.total() == 1

    def test_flood(self) -> None:
        """However many genuine ones come, it dials once a second at the most (I16)."""
        scene = quiet()
        dials = scene.dials
        for _ in range(50):
            scene.notify()
            for dial in [dial for dial in scene.clock.dials if not dial.over]:
                dial.refuse()
            advance(scene.clock, 0.1)
        assert scene.dials - dials <= 5 / WAKE_UP_INTERVAL + 5

    def test_no_more_than_that(self) -> None:
        """Whatever else a signed notice holds is not looked at: no address, no call."""
        scene = quiet()
        notice = Message(NOTIFY, CONNECTION_REQUESTED, Identifier="Ib", Address=ELSEWHERE)
        notice.fields["Caller ID"] = "Ix"
        notice.fields["Key ID"] = scene.keys[-1]
        notice.fields["Sequence"] = "5000"
        scene.port.receive(sign(notice, SECRET), SERVER)
        settle(scene.clock)
        (dial,) = [dial for dial in scene.clock.dials if not dial.over]
        assert (dial.host, dial.port) == ("127.0.0.1", 1201)
        assert not scene.terminal.busy()
