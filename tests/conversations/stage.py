"""Plays a conversation on real roles, with the network in memory and a clock that stands still.

What can happen (``--``), besides what is said:

- ``twistd broker --causes uniform``: the role that is under test, with its own options; without
  such a line it is the mediator as it comes, but for ``--auth none``
- ``Ib connects``, ``Ib connects from 192.0.2.7``: a connection, named as its lines are
- ``Ib is registered at 127.0.0.1``, ``… and accepts Ia``: it connects and registers so
- ``Ia calls Ib and is granted {session}``: by a query, an acceptable status and what follows
- ``the operator adds Ia with the password secret``, ``the operator gives Ia the password new``
- ``Ib vanishes``: it is lost; ``Ib sends nothing more``: it half-closes
- ``Ib is closed``: the server has closed it, or sends nothing more over it
- ``5 s pass``, ``2 min pass``
- ``127.0.0.1:1203 is dialled; M answers``, ``…; nobody answers``
- ``Ia sends a line of 2000 bytes``, ``Ia sends 70 lines``, ``Ia sends 9000 bytes of lines``
- ``Ia speaks with Ib by {session} and {key}``: what the lines ``Ia>*`` are encrypted with
- ``Ia sends the record DATA hello``, ``Ia gets the record END``: after the handshake
- ``DIR/name holds text``: a file of one line, which nobody else may read
- ``nothing is said``

Whatever is sent to anybody must stand in the conversation before anything else happens.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from twisted.internet.defer import Deferred, execute
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.interfaces import IProtocolFactory

from broker.mediator.auth.accounts import Accounts
from broker.messages.grammar import NOTIFY, QUERY, REGISTER
from broker.messages.message import Message, parse
from broker.messages.statements import (
    REGISTRATION_COMPLETED,
    REQUEST_ACCEPTED,
    STATUS,
    STATUS_ACCEPTABLE,
)
from broker.net.connection import ConnectionFactory
from broker.net.hub import ConnectionHub
from broker.resolver.locations import LocalResolver
from broker.resolver.remote import RemoteResolver
from broker.resolver.server import ResolverServer
from broker.resolver.udp_registrar import UdpRegistrar
from broker.service import mediator as mediator_service
from broker.service import resolver as resolver_service
from broker.service import terminal as terminal_service
from broker.terminal.channel.handshake import Handshake
from broker.terminal.channel.records import Records, RecordType
from tests.conversations.script import Script, Step
from tests.conversations.script import parse as parse_script
from tests.support.clock import advance, result_of, settle
from tests.support.reactor import FakeReactor
from tests.support.server import a_mediator
from tests.support.transport import Client, connect

#: What a placeholder stands for, by the first word of its name; any line, where none is said.
KINDS: Final = {
    "password": r"[A-Za-z0-9!#$%&*+\-./=?@^_~]{16}",
    "key": r"[0-9a-f]{64}",
    "session": r"S[0-9a-f]{24}",
    "token": r"[A-Za-z0-9._-]{1,64}",
    "number": r"[0-9]{1,15}",
}
_PLACEHOLDER: Final = re.compile(r"\{([a-z]+(?: [a-z0-9]+)*)\}")


class Differs(AssertionError):
    """What happened is not what the conversation says."""


class Stage:
    """The roles, the connections and what the placeholders stand for.

    :ivar clock: the clock and reactor of all roles
    """

    def __init__(self, folder: Path, say: Callable[[Stage, Client, bytes], None]) -> None:
        """
        :param folder: an empty one, which stands for ``DIR`` in a role's options
        :param say: hands over what a client sends; sees to the pace
        """
        self.clock = FakeReactor()
        self._folder = folder
        self._say = say
        self._factory: IProtocolFactory | None = None
        self._accounts: Accounts | None = None
        self._port = 1201
        self._clients: dict[str, Client] = {}
        self._heard: dict[str, bytes] = {}
        self._bound: dict[str, str] = {}
        self._dialled = 0
        self._handshakes: dict[str, Handshake] = {}
        self._records: dict[str, Records] = {}

    def play(self, script: Script) -> None:
        """Play it to its end.

        :raises Differs: something else happened than it says
        """
        for step in script.steps:
            try:
                self._step(step)
            except AssertionError as error:
                raise Differs(f"line {step.line}: {error}") from error
        try:
            self._nothing_more()
        except AssertionError as error:
            raise Differs(f"at the end: {error}") from error

    def _step(self, step: Step) -> None:
        if step.way == "<":
            self._hear(step)
        elif step.way == "<*":
            self._hear_body(step)
        elif " gets the record " in step.lines[0]:
            self._happen(step.lines[0])
        else:
            self._nothing_more(dialled=" is dialled; " in step.lines[0])
            if step.way == "--":
                self._happen(step.lines[0])
            elif step.way == ">":
                text = "\r\n".join([*map(self._fill, step.lines), ""])
                self._say(self, self._client(step.who), text.encode("utf-8"))
            else:
                message = parse("\n".join(map(self._fill, step.lines)).encode("utf-8"))
                self._client(step.who).send(self._handshakes[step.who].write(message))

    def _client(self, who: str) -> Client:
        if self._factory is None:
            self._raise_curtain("twistd broker")
        assert who in self._clients, f"{who} is not connected"
        return self._clients[who]

    # What is said.

    def _hear(self, step: Step) -> None:
        heard = self._listen(step.who)
        for line in step.lines:
            got, end, rest = heard.partition(b"\r\n")
            assert end, f"{step.who} should have got {line!r}, and got {heard!r}"
            self._match(line, got.decode("utf-8"), step.who)
            heard = rest
        self._heard[step.who] = heard

    def _hear_body(self, step: Step) -> None:
        expected = Message.encode(parse("\n".join(map(self._fill, step.lines)).encode("utf-8")))
        heard = self._listen(step.who)
        size = len(expected) + 48  # a key of 32 bytes before it, a tag of 16 after it
        got = self._handshakes[step.who].read(heard[:size]).encode()
        assert got == expected, f"{step.who} got {got!r}"
        self._heard[step.who] = heard[size:]
        self._records[step.who] = Records(self._handshakes[step.who].cipher())

    def _listen(self, who: str) -> bytes:
        settle(self.clock)
        self._heard[who] = self._heard.get(who, b"") + self._client(who).bytes()
        return self._heard[who]

    def _match(self, line: str, got: str, who: str) -> None:
        pattern, names = "", []
        position = 0
        for found in _PLACEHOLDER.finditer(line):
            pattern += re.escape(line[position : found.start()])
            name = found[1]
            if name in self._bound:
                pattern += re.escape(self._bound[name])
            else:
                pattern += f"({KINDS.get(name.partition(' ')[0], '.+')})"
                names.append(name)
            position = found.end()
        matched = re.fullmatch(pattern + re.escape(line[position:]), got)
        assert matched is not None, f"{who} should have got {self._known(line)!r}, and got {got!r}"
        for name, value in zip(names, matched.groups(), strict=True):
            assert value not in self._bound.values(), f"{value!r} came before, by another name"
            self._bound[name] = value

    def _fill(self, line: str) -> str:
        for name in _PLACEHOLDER.findall(line):
            assert name in self._bound, f"nobody has said what {{{name}}} is"
        return self._known(line)

    def _known(self, line: str) -> str:
        return _PLACEHOLDER.sub(lambda found: self._bound.get(found[1], found[0]), line)

    def _nothing_more(self, *, dialled: bool = False) -> None:
        """Nothing was said that the conversation does not hold, and nobody dialled.

        :param dialled: that is what comes next
        """
        settle(self.clock)
        for who in self._clients:
            heard = self._listen(who)
            assert not heard, f"{who} also got {heard!r}"
        for who, records in self._records.items():
            rest = records._buffer[records._start :]
            assert not rest, f"{who} also got a record of {len(rest)} bytes"
        dials = self.clock.dials[self._dialled :]
        assert dialled or not dials, f"{dials[0].host}:{dials[0].port} was dialled"

    # What happens.

    def _happen(self, what: str) -> None:
        for pattern, action in self._HAPPENINGS:
            found = re.fullmatch(pattern, what)
            if found is not None:
                action(self, *found.groups())
                settle(self.clock)
                return
        raise AssertionError(f"nobody knows how this happens: {what!r}")

    def _connect(self, who: str, host: str | None) -> None:
        if self._factory is None:
            self._raise_curtain("twistd broker")
        assert who not in self._clients or self._clients[who].closed, f"{who} is connected already"
        assert self._factory is not None
        self._heard.pop(who, None)
        self._clients[who] = connect(
            self._factory, self.clock, peer_host=host or "127.0.0.1", port=self._port
        )

    def _register(self, who: str, host: str, accepted: str | None) -> None:
        self._connect(who, None)
        client = self._clients[who]
        message = Message(REGISTER, Identifier=who, Address=host)
        if accepted is not None:
            message.fields["Accept"] = f"Create {accepted}"
        client.send(message)
        assert client.received() == [Message(NOTIFY, REGISTRATION_COMPLETED)]

    def _grant(self, who: str, callee: str, placeholder: str) -> None:
        caller, called = self._client(who), self._client(callee)
        caller.send(Message(QUERY, Identifier=who, Callee=callee))
        assert called.received() == [Message(QUERY, STATUS)]
        called.send(Message(NOTIFY, STATUS_ACCEPTABLE))
        accepted, told = caller.received()
        assert accepted == Message(NOTIFY, REQUEST_ACCEPTED)
        (announced,) = called.received()
        assert announced.get("Session") == told.get("Session")
        assert placeholder[1:-1] not in self._bound, f"{placeholder} is known already"
        self._bound[placeholder[1:-1]] = told.fields["Session"]

    def _give_account(self, act: str, identifier: str, password: str) -> None:
        assert self._accounts is not None, "no mediator is under test"
        do = self._accounts.add if act == "adds" else self._accounts.reset
        result_of(do(identifier, password))

    def _end(self, who: str, how: str) -> None:
        client = self._client(who)
        if how == "is closed":
            assert client.ended, f"{who}'s connection is open"
        elif how == "vanishes":
            client.vanish()
        else:
            client.end_input()

    def _send_much(self, who: str, what: str) -> None:
        size = int(next(word for word in what.split() if word.isdigit()))
        line = b"Note:" + b"x" * 993 + b"\r\n"
        many = b"Note:x\r\n" * size if "bytes" not in what else line * (size // len(line))
        self._client(who).send(b"x" * size + b"\r\n" if what.startswith("a line") else many)

    def _pass(self, amount: str, unit: str) -> None:
        advance(self.clock, float(amount) * (60 if unit == "min" else 1))

    def _dialled_is(self, place: str, who: str) -> None:
        settle(self.clock)
        assert self._dialled < len(self.clock.dials), f"{place} was not dialled"
        dial = self.clock.dials[self._dialled]
        self._dialled += 1
        assert place == f"{dial.host}:{dial.port}", f"{dial.host}:{dial.port} was dialled"
        if who == "nobody":
            dial.refuse()
        else:
            self._heard.pop(who, None)
            self._clients[who] = dial.accept()

    def _seal(self, who: str, callee: str, session: str, key: str) -> None:
        names = [self._fill(name) for name in (session, who, callee, key)]
        self._handshakes[who] = Handshake(*names, initiator=True)

    def _send_record(self, who: str, kind: str, text: str | None) -> None:
        record = self._records[who].seal(RecordType[kind], (text or "").encode("utf-8"))
        self._client(who).send(record)

    def _get_record(self, who: str, kind: str, text: str | None) -> None:
        r"""One record; ``\n`` in its text is a line's end."""
        expected = (text or "").replace("\\n", "\r\n").encode("utf-8")
        self._records[who].feed(self._listen(who))
        self._heard[who] = b""
        got = next(iter(self._records[who]), None)
        assert got == (RecordType[kind], expected), f"{who} got {got!r}"

    def _hold(self, name: str, text: str) -> None:
        path = self._folder / name
        path.write_text(f"{text}\n", encoding="utf-8")
        path.chmod(0o600)

    # Roles.

    def _raise_curtain(self, command: str) -> None:
        assert self._factory is None, "one role at a time is under test"
        _, role, *arguments = shlex.split(command.replace(" DIR", f" {self._folder}"))
        {
            "broker": self._start_mediator,
            "broker-resolver": self._start_resolver,
            "broker-terminal": self._start_terminal,
        }[role](arguments)

    def _start_mediator(self, arguments: list[str]) -> None:
        options = mediator_service.Options()
        options.parseOptions(["--auth=none", *arguments])
        timeout = 120 if options["auth"] == "none" else 10
        given: dict[str, Any] = {}
        if options["resolver"] is not None:
            hub = ConnectionHub.of_client(self.clock)
            reactor: Any = self.clock
            endpoint = TCP4ClientEndpoint(reactor, options["resolver"].host, 1200)
            given["resolver"] = resolver = RemoteResolver(hub, endpoint, jitter=lambda: 1.0)
            resolver.start()
        elif options["udp"] is not None:
            registrar = UdpRegistrar(self.clock, os.urandom)
            given["resolver"] = LocalResolver(self.clock, registrar=registrar)
        fake = a_mediator(
            self.clock,
            hub={"login_timeout": options["login-timeout"] or timeout},
            accounts={} if options["auth"] == "password" else None,
            ask_status=not options["no-status"],
            status_timeout=options["status-timeout"],
            uniform_refusals=options["causes"] == "uniform",
            allowed_networks=options["allow-address"],
            own_ports={1201},
            **given,
        )
        self._factory = fake.factory
        self._accounts = fake.mediator.accounts

    def _start_resolver(self, arguments: list[str]) -> None:
        options = resolver_service.Options()
        options.parseOptions(arguments)
        server = ResolverServer(
            ConnectionHub(self.clock, login_timeout=options["login-timeout"]),
            LocalResolver(self.clock),
            allowed=options["allow-address"],
            own_ports={1200},
        )
        self._factory = ConnectionFactory(server.hub, server.peer)
        self._port = 1200

    def _start_terminal(self, arguments: list[str]) -> None:
        options = terminal_service.Options()
        options.parseOptions(arguments)
        reactor: Any = self.clock
        service = terminal_service.TerminalService(reactor, options, execute)
        opening = Deferred.fromCoroutine(service.open())
        assert opening.called
        *_, factory, _, _ = self.clock.tcpServers[0]
        self._factory = factory
        self._port = self.clock.tcpServers[0][0]

    _HAPPENINGS: Final[tuple[tuple[str, Callable[..., None]], ...]] = (
        (r"(twistd .*)", _raise_curtain),
        (r"(\w+) connects(?: from (\S+))?", _connect),
        (r"(\w+) is registered at (\S+?)(?: and accepts (\S+))?", _register),
        (r"(\w+) calls (\w+) and is granted (\{.+\})", _grant),
        (r"the operator (adds|gives) (\w+)(?: with)? the password (.+)", _give_account),
        (r"(\w+) (vanishes|is closed|sends nothing more)", _end),
        (r"([0-9.]+) (s|min) pass", _pass),
        (r"(\S+) is dialled; (\w+) answers", _dialled_is),
        (r"(\w+) sends (a line of \d+ bytes|\d+ lines|\d+ bytes of lines)", _send_much),
        (r"(\w+) speaks with (\w+) by (\{.+\}|\S+) and (\{.+\}|\S+)", _seal),
        (r"(\w+) sends the record ([A-Z]+)(?: (.+))?", _send_record),
        (r"(\w+) gets the record ([A-Z]+)(?: (.+))?", _get_record),
        (r"DIR/(\S+) holds (.+)", _hold),
        (r"nothing is said", lambda _: None),  # as has just been found
    )


def play(text: str, folder: Path) -> None:
    """Play a conversation that a test writes, each message in one piece."""
    Stage(folder, at_once).play(Script("", 0, tuple(parse_script(text.split("\n")))))


def at_once(stage: Stage, client: Client, data: bytes) -> None:
    """In one piece."""
    client.send(data)
