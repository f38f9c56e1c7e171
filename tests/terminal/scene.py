"""A terminal, or its client alone, whose mediator is played by the test."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any, Final

from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.python.failure import Failure

from broker.messages.datagram import parse_datagram
from broker.messages.grammar import NOTIFY, QUERY, REGISTER
from broker.messages.message import Message
from broker.messages.signing import sign
from broker.messages.statements import CONNECTION_REQUESTED, REGISTRATION_COMPLETED
from broker.tables.consent_lists import ConsentLists
from broker.terminal.registration.client import MediatorClient, NullEvents, dial
from broker.terminal.registration.notices import ConnectBackRequest, PendingCall
from broker.terminal.settings import LINGER, TerminalSettings
from broker.terminal.terminal import Terminal
from tests.support.clock import advance, result_of, settle
from tests.support.reactor import FakeReactor
from tests.support.transport import Client
from tests.terminal.keys import CALLER
from tests.terminal.network import HOST, MEDIATOR_PORT, Outcome

PASSWORD: Final = "correct horse"
#: Another machine than the terminal's.
ELSEWHERE: Final = "192.0.2.1"
#: The resolver's address for datagrams.
SERVER: Final = (HOST, 1200)
SECRET: Final = b"s" * 32


def mediator_at(clock: FakeReactor, host: str = HOST) -> IStreamClientEndpoint:
    """The endpoint of a mediator."""
    reactor: Any = clock
    return TCP4ClientEndpoint(reactor, host, MEDIATOR_PORT)


class Scene:
    """A terminal, and a person who plays its mediator.

    :ivar line: the mediator's end of the newest connection
    """

    def __init__(
        self,
        password: str | Callable[[], str | None] | None = PASSWORD,
        *,
        host: str = HOST,
        **options: Any,
    ) -> None:
        self.clock = FakeReactor()
        options = {"password": password, "jitter": random.Random(1).random, **options}
        reactor: Any = self.clock
        self.terminal = Terminal(
            reactor, "Ib", mediator_at(self.clock, host), TerminalSettings(**options)
        )
        self.line: Client
        self.ready = Outcome(self.terminal.ready())
        self.terminal.startService()
        self.connect()

    def connect(self, host: str | None = None) -> None:
        """The terminal's next attempt reaches its mediator, which may be elsewhere by now."""
        while not (dials := self.open_dials()):
            assert self.clock.getDelayedCalls(), "it dials no more"
            advance(self.clock, 0.1)
        dials[0].host = host or dials[0].host
        self.line = dials[0].accept()
        self.serial = 0

    def open_dials(self) -> list[Any]:
        """Its attempts to connect that have no outcome yet."""
        return [dial for dial in self.clock.dials if not dial.over]

    def refuse_dials(self) -> None:
        """Its mediator is not there."""
        for attempt in self.open_dials():
            attempt.refuse()

    def said(self) -> Message:
        """The one message that came."""
        (message,) = self.line.received()
        return message

    def shown(self) -> tuple[str | None, str | None]:
        """The password and the token of the one message that came."""
        message = self.said()
        return message.get("Password"), message.get("Token")

    def answer(self, text: str, code: int, **fields: str) -> None:
        """Answer the last question on this connection, looked at or not."""
        self.line.received()
        lines = "".join(f"{name}:{value}\n" for name, value in fields.items())
        self.serial += 1
        self.line.type(f"NOTIFY\n{text}\n{lines}Transaction:{self.serial}\nCode:{code}\n\n")

    def complete(self, **fields: str) -> None:
        """Take the registration."""
        self.answer("Registration Completed.", 200, **fields)

    def lose(self) -> None:
        """The connection breaks; the next one stands."""
        self.line.vanish()
        self.connect()

    def come_back(self) -> None:
        """The terminal has closed the connection itself; the next one stands."""
        settle(self.clock)
        assert self.line.closed
        self.connect()


class UdpScene(Scene):
    """One that registers by UDP, and a person who plays its resolver as well.

    :ivar keys: the names of the keys that were given out
    """

    def __init__(self, **options: Any) -> None:
        self.keys: list[str] = []
        self.notices = 1000
        super().__init__(**{"udp": (None, SERVER[1]), "hold": False, **options})

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

    def notify(self, key: bytes = SECRET, **fields: Any) -> bytes:
        """Send a notice; return it."""
        self.notices += 1
        notice = Message(NOTIFY, CONNECTION_REQUESTED, Identifier="Ib", **fields)
        notice.fields["Key ID"] = self.keys[-1]
        notice.fields["Sequence"] = str(self.notices)
        datagram = sign(notice, key)
        self.port.receive(datagram, SERVER)
        settle(self.clock)
        return datagram

    def ask_status(self) -> None:
        """Ask what is always answered."""
        self.line.type("QUERY\nSTATUS\nTransaction:9\n\n")

    @property
    def dials(self) -> int:
        """How often it has dialled its mediator."""
        return len(self.clock.dials)

    @property
    def dialling(self) -> Any:
        """Whether it dials just now."""
        return bool(self.open_dials())


def holding(**options: Any) -> UdpScene:
    """A terminal that has logged in, registered by UDP, and holds its line."""
    scene = UdpScene(**{"hold": True, **options})
    scene.take()
    scene.advance(5)
    return scene


def idle(**options: Any) -> UdpScene:
    """A terminal that has logged in, registered by UDP, and closed its line."""
    scene = UdpScene(**options)
    scene.take()
    scene.advance(LINGER + 1)
    assert scene.line.closed
    return scene


def closing() -> UdpScene:
    """One that is about to close its line, of which the mediator has not read all."""
    scene = UdpScene(linger=2)
    scene.take()
    scene.advance(1)
    scene.line.transport.stop_reading_peer()
    scene.ask_status()
    scene.advance(2.5)
    assert scene.line.transport.disconnecting
    assert not scene.line.closed
    return scene


class Events(NullEvents):
    """Keeps what a client hears from its mediator.

    :ivar free: whether a call can be taken
    :ivar heard: everything, in order
    :ivar asked: gives the lists of whom it accepts
    """

    def __init__(self) -> None:
        self.free = True
        self.heard: list[tuple[Any, ...]] = []
        self.asked: Callable[[], Awaitable[ConsentLists]] = super().consent_lists

    def acceptable(self) -> bool:
        self.heard.append(("status",))
        return self.free

    async def consent_lists(self) -> ConsentLists:
        self.heard.append(("lists",))
        return await self.asked()

    def call_announced(self, client: MediatorClient, call: PendingCall) -> None:
        self.heard.append(("announced", call))

    def dial_back(self, request: ConnectBackRequest) -> None:
        self.heard.append(("dial back", request))

    def session_terminated(self, session: str, how: str | None = None) -> None:
        self.heard.append(("terminated", session) if how is None else ("terminated", session, how))

    def superseded(self) -> None:
        self.heard.append(("superseded",))

    def mediator_lost(self, client: MediatorClient, reason: Failure) -> None:
        self.heard.append(("lost", client))


class Wire:
    """A client, and the mediator's end of its connection, which a test plays.

    :ivar mediator: what the mediator receives, and where it sends
    """

    def __init__(self, identifier: str = CALLER, events: Events | None = None) -> None:
        self.clock = FakeReactor()
        self.events = events or Events()
        reactor: Any = self.clock
        dialled = dial(reactor, mediator_at(self.clock), identifier, events=self.events)
        self.mediator: Client = self.clock.dials[0].accept(local_host="192.0.2.99")
        self.client: MediatorClient = result_of(dialled)

    def ask(self, deferred: Any) -> tuple[Outcome, Message]:
        """What becomes of a question, and the question as it arrived."""
        outcome = Outcome(deferred)
        (question,) = self.mediator.received()
        return outcome, question

    def answer(self, text: str, code: int = 200, transaction: int = 1) -> None:
        """Answer a question: the statement and fields, a line each."""
        lines = f"{text.rstrip()}\n" if text else ""
        self.mediator.type(f"NOTIFY\n{lines}Transaction:{transaction}\nCode:{code}\n\n")

    def outcome(self, ask: Callable[[MediatorClient], Any], text: str) -> Outcome:
        """What becomes of the first question, which is answered so."""
        outcome, _ = self.ask(ask(self.client))
        self.answer(text)
        return outcome
