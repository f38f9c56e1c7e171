"""The terminal's role in memory: what it opens, and how its options reach the terminal."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.logger import capturedLogs, formatEvent

from broker.messages.datagram import parse_datagram
from broker.messages.grammar import NOTIFY
from broker.messages.message import Message
from broker.messages.signing import sign
from broker.messages.statements import REGISTRATION_COMPLETED
from broker.service.settings.credentials import Keyring
from tests.service.scene import TERMINAL, Scene, a_file, errors, parse
from tests.support.clock import settle

SECRET = "open sesame"
KEY = "Key ID:K1\nRegistration Key:" + "73" * 32 + "\nInterval:25\n"
REGISTERED = "NOTIFY\nRegistration Completed.\nEpoch:e1\n{}Transaction:1\nCode:200\n\n"
NO_SERVERS = "1200|a|a:|:1200|a:0|a:65536|2001:db8::1:1200|a b:1|ä:1"
ELSEWHERE = "--mediator=tcp:192.0.2.1:1201"


def a_terminal(*arguments: str, started: bool = True) -> Scene:
    """A terminal with these options."""
    return Scene(TERMINAL, *arguments, started=started)


def settings(*arguments: str) -> Any:
    """The settings of a terminal with these options."""
    return a_terminal(*arguments, started=False).service.terminal.settings


class ServiceTests:
    """``twistd broker-terminal``."""

    def test_registers(self) -> None:
        """It listens, connects to its mediator, and registers its address and its permits."""
        scene = a_terminal("--listen=tcp:1210", "--accept=Ia", "--accept=Ic")
        assert scene.ports == [1210]
        (dial,) = scene.reactor.dials
        assert (dial.host, dial.port) == ("127.0.0.1", 1201)
        line = scene.line(local_host="127.0.0.9")
        assert line.text() == (
            "REGISTER\nIdentifier:Ib\nAddress:127.0.0.9\nPort:1210\nTransaction:1\n\n"
        )
        line.type(REGISTERED.format(""))
        assert "Accept:Add Ia,Ic\n" in line.text()

    def test_address(self) -> None:
        """``--address`` is what it registers."""
        line = a_terminal("--address=192.0.2.7").line()
        assert "Address:192.0.2.7\nPort:1203\n" in line.text()

    @pytest.mark.parametrize(
        ("receive", "status"), [(True, "STATUS Acceptable."), (False, "STATUS Busy.")]
    )
    def test_status(self, tmp_path: Path, receive: bool, status: str) -> None:
        """With a folder to receive in it takes calls; without it takes none (A13)."""
        line = a_terminal(*([f"--receive={tmp_path}"] if receive else [])).line()
        line.text()
        line.type(REGISTERED.format("") + "QUERY\nSTATUS\n\n")
        assert line.text() == f"NOTIFY\n{status}\n\n"

    def test_leaves_nothing_behind(self, tmp_path: Path) -> None:
        """Stopped, it has closed its connection and left no timer, the load's included."""
        scene = a_terminal(f"--receive={tmp_path}", "--max-load=50")
        line = scene.line()
        scene.advance(3)
        scene.stops(line)

    def test_clear_text(self) -> None:
        """Clear text to another machine is a line of the log (I25); elsewhere it is allowed."""
        with capturedLogs() as events:
            a_terminal(ELSEWHERE, "--allow-clear-text")
        assert "tcp:192.0.2.1:1201 are not encrypted" in formatEvent(events[0])
        for server in ("tcp:localhost:1201", "tls:192.0.2.1:1202", r"tcp:\:\:1:1201"):
            settings(f"--mediator={server}")

    def test_passwords(self, tmp_path: Path, no_passwords_of_ours: Path) -> None:
        """It logs in with what ``--password-file`` names, else with what ``broker login`` keeps
        for that mediator alone (A19, I26). A password that others can read is refused.
        """
        keyring = Keyring(no_passwords_of_ours / "broker")
        kept = keyring.keep("Ib", "tcp:127.0.0.1:1201", "kept")
        keyring.keep("Ia", "tcp:127.0.0.1:1201", "another's")
        path = a_file(tmp_path / "password")
        for option, expected in {
            f"--password-file={path}": "correct horse",
            "--listen=tcp:1203": "kept",
            "--mediator=tcp:127.0.0.1:1299": None,
        }.items():
            (message,) = a_terminal(option).line().received()
            assert message.get("Password") == expected
        for exposed, options in ((path, [f"--password-file={path}"]), (kept, [])):
            exposed.chmod(0o640)
            with pytest.raises(SystemExit) as given_up:
                settings(*options)
            why = str(given_up.value.code)
            assert f"{exposed}: others can read or change it: chmod 600 {exposed}" in why
            assert why.startswith("broker-terminal: ")


class CallPasswordTests:
    """``--policy password``."""

    def test_they_reach_the_terminal(self, tmp_path: Path) -> None:
        """The file is read for each call; networks are those that are named (D7)."""
        file = a_file(tmp_path / "Ib.call", f"{SECRET}\n".encode())
        options = ("--policy=password", f"--call-password-file={file}")
        found = settings(*options, "--call-back-to=10.0.0.0/8")
        assert found.call_back_to == [ip_network("10.0.0.0/8")]
        assert found.call_password("Ia", SECRET)
        file.write_text("another\n")
        assert not found.call_password("Ia", SECRET)
        assert found.call_password("Ia", "another")

    def test_none(self) -> None:
        """Without a call password, no caller is called back (I3)."""
        assert settings().call_password is None


class OpenPortTests:
    """``--open-port`` (D9)."""

    def test_off_and_on(self) -> None:
        """The router is changed only with the option."""
        off, on = settings(), settings("--open-port")
        assert (off.opener, off.open_port) == (None, False)
        assert on.opener is not None
        assert on.open_port

    def test_stopped_last(self) -> None:
        """What opens ports is stopped after the terminal has given back its port."""
        role = a_terminal("--open-port", started=False).service
        order: list[str] = []
        stopping: Deferred[None] = Deferred()

        def stop(what: str, done: Deferred[None]) -> Deferred[None]:
            order.append(what)
            return done

        role.terminal.settings.opener.stop = lambda: stop("opener", succeed(None))
        role.terminal.stopService = lambda: stop("terminal", stopping)
        closed = role.close()
        assert order == ["terminal"]
        stopping.callback(None)
        assert order == ["terminal", "opener"]
        assert closed.called


class UdpTests:
    """``--udp``, ``--no-hold``, ``--linger``, ``--keepalive-most``."""

    @pytest.mark.parametrize(
        ("options", "server"),
        [
            ([], None),
            (["--udp=auto"], (None, 1200)),
            (["--udp=192.0.2.1:1999"], ("192.0.2.1", 1999)),
            (["--udp=[2001:db8::1]:1200"], ("2001:db8::1", 1200)),
            (["--udp=resolver.example.jp:1200"], ("resolver.example.jp", 1200)),
        ],
    )
    def test_server(self, options: list[str], server: object) -> None:
        """A host and a port, or the mediator's own host. Without the option there is no UDP; the
        connection stays open.
        """
        parsed = parse(TERMINAL, *options)
        assert (parsed["udp"], parsed["no-hold"]) == (server, False)

    @pytest.mark.parametrize("text", NO_SERVERS.split("|"))
    def test_no_server(self, text: str) -> None:
        """Anything else is refused at the start."""
        why = f"broker-terminal: --udp: {text!r} is neither HOST:PORT nor auto"
        assert errors(TERMINAL, "--identifier=Ib", f"--udp={text}") == [why]

    def test_idle(self) -> None:
        """It registers by UDP with the key of its login, and disconnects in time (D1)."""
        options = ("--no-hold", "--linger=3", "--keepalive-most=7")
        scene = a_terminal("--udp=127.0.0.1:1999", *options)
        client = scene.line()
        assert client.text() == "REGISTER\nIdentifier:Ib\nUDP:Yes\nPort:1203\nTransaction:1\n\n"
        client.type(REGISTERED.format(KEY))
        settle(scene.reactor)
        (port,) = scene.reactor.datagrams
        data, to = port.sent[0]
        assert to == ("127.0.0.1", 1999)
        assert parse_datagram(data).get("Identifier") == "Ib"
        assert parse_datagram(data).get("Expires") == "60"
        answer = Message(NOTIFY, REGISTRATION_COMPLETED, Sequence="1")
        port.receive(sign(answer, b"s" * 32), to)
        scene.advance(2.9)
        assert not client.closed
        scene.advance(0.1)
        assert client.closed
        scene.advance(4.1)  # 7 seconds in all, although the mediator suggests 25
        assert len([data for data, _ in port.sent if data.startswith(b"REGISTER")]) == 2
