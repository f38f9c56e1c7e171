"""The terminal's options about its call password, its router's port, and UDP."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, execute, succeed

from broker.messages.datagram import parse_datagram
from broker.messages.grammar import NOTIFY
from broker.messages.message import Message
from broker.messages.signing import sign
from broker.messages.statements import REGISTRATION_COMPLETED
from broker.service.terminal import TerminalOptions, TerminalService
from tests.service.test_options import errors, parse
from tests.service.test_services import start
from tests.support.clock import advance, settle
from tests.support.reactor import FakeReactor

SECRET = "open sesame"
KEY = "Key ID:K1\nRegistration Key:" + "73" * 32 + "\nInterval:25\n"


def service(*arguments: str, reactor: Any = None) -> TerminalService:
    """A terminal with these options."""
    options: Any = parse(TerminalOptions, *arguments)
    return TerminalService(reactor or FakeReactor(), options, execute)


def refused(*arguments: str) -> str:
    """Why a terminal does not start."""
    (error,) = errors(TerminalOptions, "--identifier=Ib", *arguments)
    return error


class CallPasswordTests:
    """``--policy password``."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        """The file of a call password."""
        path = tmp_path / "Ib.call"
        path.write_text(f"{SECRET}\n")
        path.chmod(0o600)
        return path

    def test_both(self, file: Path) -> None:
        """The policy and the file go together (I3)."""
        alone = refused("--policy=password")
        assert "--policy: password needs a call-password-file" in alone
        for policy in ([], ["--policy=list"]):
            other = refused(f"--call-password-file={file}", *policy)
            assert "--call-password-file: goes with the policy password" in other

    def test_invalid(self, file: Path) -> None:
        """A file that others can read is refused (I18), and so are an empty one and no policy."""
        options = ("--policy=password", f"--call-password-file={file}")
        file.chmod(0o640)
        assert f"{file}: others can read or change it" in refused(*options)
        file.chmod(0o600)
        file.write_text("\n")
        assert f"{file}: holds no password" in refused(*options)
        assert "'secret' is neither list nor ask nor password" in refused("--policy=secret")

    def test_they_reach_the_terminal(self, file: Path) -> None:
        """The file is read for each call; networks are those that are named (D7)."""
        options = ("--policy=password", f"--call-password-file={file}")
        terminal = service(*options, "--call-back-to=10.0.0.0/8").terminal
        assert terminal.settings.call_back_to == [ip_network("10.0.0.0/8")]
        admits: Any = terminal.settings.call_password
        assert admits("Ia", SECRET)
        file.write_text("another\n")
        assert not admits("Ia", SECRET)
        assert admits("Ia", "another")

    def test_none(self) -> None:
        """Without a call password, no caller is called back (I3)."""
        assert service().terminal.settings.call_password is None


class OpenPortTests:
    """``--open-port`` (D9)."""

    def test_off_and_on(self) -> None:
        """The router is changed only with the option."""
        off, on = (service(*options).terminal.settings for options in ((), ("--open-port",)))
        assert (off.opener, off.open_port) == (None, False)
        assert on.opener is not None
        assert on.open_port

    def test_with_an_address(self) -> None:
        """The address can't be both given and found out."""
        why = refused("--open-port", "--address=203.0.113.7")
        assert "--open-port: finds out the address itself: leave out address" in why

    def test_stopped_last(self) -> None:
        """What opens ports is stopped after the terminal has given back its port."""
        role = service("--open-port")
        order: list[str] = []
        stopping: Deferred[None] = Deferred()
        opener: Any = role.terminal.settings.opener

        def stop(what: str, done: Deferred[None]) -> Deferred[None]:
            order.append(what)
            return done

        role.terminal.stopService = lambda: stop("terminal", stopping)  # type: ignore[method-assign]
        opener.stop = lambda: stop("opener", succeed(None))
        closed = role.close()
        assert order == ["terminal"]
        stopping.callback(None)
        assert order == ["terminal", "opener"]
        assert closed.called


class UdpTests:
    """``--udp``, ``--no-hold``, ``--linger``, ``--keepalive-most``."""

    def test_default(self) -> None:
        """Without these options there is no UDP, and the connection stays open."""
        options = parse(TerminalOptions)
        assert options["udp"] is None
        assert options["no-hold"] is False

    @pytest.mark.parametrize(
        ("text", "server"),
        [
            ("auto", (None, 1200)),
            ("192.0.2.1:1999", ("192.0.2.1", 1999)),
            ("[2001:db8::1]:1200", ("2001:db8::1", 1200)),
            ("resolver.example.jp:1200", ("resolver.example.jp", 1200)),
        ],
    )
    def test_server(self, text: str, server: object) -> None:
        """A host and a port, or the mediator's own host."""
        assert parse(TerminalOptions, f"--udp={text}")["udp"] == server

    @pytest.mark.parametrize(
        "text", ["1200", "a", "a:", ":1200", "a:0", "a:65536", "2001:db8::1:1200", "a b:1", "ä:1"]
    )
    def test_no_server(self, text: str) -> None:
        """Anything else is refused at the start."""
        expected = f"broker-terminal: --udp: {text!r} is neither HOST:PORT nor auto"
        assert refused(f"--udp={text}") == expected

    def test_no_hold_without_udp(self) -> None:
        """Without UDP nothing could wake the terminal."""
        assert "--no-hold: needs udp" in refused("--no-hold")

    def test_idle(self) -> None:
        """It registers by UDP with the key of its login, and disconnects in time (D1)."""
        reactor = FakeReactor()
        options = ("--no-hold", "--linger=3", "--keepalive-most=7")
        start(service("--udp=127.0.0.1:1999", *options, reactor=reactor))
        client = reactor.dials[0].accept()
        assert client.text() == "REGISTER\nIdentifier:Ib\nUDP:Yes\nPort:1203\nTransaction:1\n\n"
        client.type(f"NOTIFY\nRegistration Completed.\nEpoch:e1\n{KEY}Transaction:1\nCode:200\n\n")
        settle(reactor)
        (port,) = reactor.datagrams
        data, to = port.sent[0]
        assert to == ("127.0.0.1", 1999)
        assert parse_datagram(data).get("Identifier") == "Ib"
        assert parse_datagram(data).get("Expires") == "60"
        answer = Message(NOTIFY, REGISTRATION_COMPLETED, Sequence="1")
        port.receive(sign(answer, b"s" * 32), to)
        advance(reactor, 2.9)
        assert not client.closed
        advance(reactor, 0.1)
        assert client.closed
        advance(reactor, 4.1)  # 7 seconds in all, although the mediator suggests 25
        assert len([data for data, _ in port.sent if data.startswith(b"REGISTER")]) == 2
