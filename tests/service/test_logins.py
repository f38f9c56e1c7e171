"""How terminals log in at the mediator's service: its options, the tokens' key, and TLS."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest
from twisted.logger import capturedLogs, formatEvent

from broker.mediator.auth.tokens import KEY_BYTES
from broker.service import mediator
from broker.service.errors import CannotStart
from broker.store.memory import MemoryStore
from tests.service.test_options import errors, parse
from tests.service.test_services import client, options_of, start
from tests.support.certificates import Files, Pki, foreign_client, meet
from tests.support.clock import advance, result_of, settle
from tests.support.reactor import FakeReactor
from tests.support.server import cheap_passwords
from tests.support.transport import connect

LOOPBACK = "--listen-tls=tcp:1202:interface=127.0.0.1"

#: Modes of a file that others can read or change, and contents that are no key.
EXPOSED = (0o640, 0o604, 0o660)
NO_KEYS = (b"", b"short", b"k" * (KEY_BYTES + 1))


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """An authority."""
    return Pki(tmp_path_factory.mktemp("logins"))


@pytest.fixture(scope="module")
def own(pki: Pki) -> Files:
    """A server's certificate."""
    return pki.server()


def tls(own: Files, pki: Pki, *more: str) -> list[str]:
    """The options for TLS that asks for certificates."""
    pair = [f"--certificate={own.certificate}", f"--private-key={own.key}"]
    return [LOOPBACK, *pair, f"--client-ca={pki.ca}", *more]


def a_service(
    *arguments: str, store: MemoryStore | None = None
) -> tuple[FakeReactor, mediator.MediatorService]:
    """A mediator's service, started."""
    reactor = FakeReactor()
    options = options_of(mediator.Options, *arguments)
    service = mediator.MediatorService(
        reactor,
        options,
        store or MemoryStore(lambda count: b"r" * count),
        passwords=cheap_passwords(),
    )
    start(service)
    return reactor, service


class OptionsTests:
    """``--auth`` and what goes with it."""

    def test_default(self) -> None:
        """With nothing said, terminals need passwords (A19)."""
        assert parse(mediator.Options)["auth"] == "password"

    @pytest.mark.parametrize("auth", ["password", "certificate", "none"])
    def test_clear_text(self, auth: str, own: Files, pki: Pki) -> None:
        """Clear text beyond this machine must be allowed, with any --auth (I25)."""
        if auth != "certificate":
            (error,) = errors(mediator.Options, f"--auth={auth}", "--listen=tcp:1201")
            assert "in clear text:" in error
            assert error.endswith("or use --allow-clear-text")
        beyond = tls(own, pki, "--listen-tls=tcp:1202", f"--auth={auth}")
        assert len(errors(mediator.Options, *beyond) if auth == "none" else []) == (auth == "none")
        if auth != "none":
            parse(mediator.Options, *beyond)

    def test_certificates_need_tls(self) -> None:
        """Where certificates are asked for, TLS and their authority must be named (I3)."""
        assert errors(mediator.Options, "--auth=certificate") == [
            "broker: --auth: certificates need --listen-tls and --client-ca"
        ]

    def test_certificates_and_clear_text(self, own: Files, pki: Pki) -> None:
        """A port where no terminal could log in is an error if it is named, else not opened."""
        certificate = tls(own, pki, "--auth=certificate")
        (error,) = errors(mediator.Options, *certificate, "--listen=tcp:1201:interface=127.0.0.1")
        assert error == (
            "broker: --listen: without TLS no terminal can show a certificate: leave it out"
        )
        reactor, _ = a_service(*certificate)
        assert [port for port, *_ in reactor.tcpServers] == [1202]

    @pytest.mark.parametrize(
        ("arguments", "seconds"),
        [
            (["--auth=none"], 120),
            (["--auth=password"], 10),
            (["--auth=none", "--login-timeout=7"], 7),
            (["--auth=password", "--login-timeout=30"], 30),
        ],
    )
    def test_login_timeout(self, arguments: list[str], seconds: int) -> None:
        """Ten seconds to log in, and two minutes for a person, unless it is said (I14)."""
        reactor, _ = a_service(*arguments, "--store=memory:")
        silent = client(reactor)
        advance(reactor, seconds - 0.1)
        assert not silent.closed
        advance(reactor, 0.2)
        assert silent.closed

    @pytest.mark.parametrize("days", ["0", "x", "1.5", "36501"])
    def test_ledger_days(self, days: str) -> None:
        """For how many days it is kept who was told what is a number of days."""
        assert len(errors(mediator.Options, f"--ledger-days={days}")) == 1
        assert parse(mediator.Options, "--ledger-days=7")["ledger-days"] == 7

    def test_ledger(self) -> None:
        """The options reach the ledger."""
        _, service = a_service("--auth=none", "--ledger=first")
        assert service.mediator is not None
        assert service.mediator.context.disclosures.first
        _, service = a_service("--auth=none")
        assert service.mediator is not None
        assert not service.mediator.context.disclosures.first


class PasswordServiceTests:
    """``twistd broker`` as it comes."""

    def test_logs_in(self, tmp_path: Path) -> None:
        """No terminal can act until the operator makes an account, and the log says how."""
        with capturedLogs() as events:
            reactor, service = a_service(f"--store=sqlite:{tmp_path}/b.db")
        told = [formatEvent(event) for event in events]
        assert "There is no account yet: broker account add ID makes the first one" in told
        peer = client(reactor)
        peer.type("REGISTER\nIdentifier:Ia\n\n")
        assert "Login Required." in peer.text()
        assert service.mediator is not None
        result_of(service.mediator.accounts.add("Ia", "secret"))
        peer.type("REGISTER\nIdentifier:Ia\nPassword:secret\n\n")
        assert peer.text() == "NOTIFY\nRegistration Completed.\n\n"

    def test_resumes_after_a_restart(self, tmp_path: Path) -> None:
        """A token is valid after a restart, as long as its key is next to the database (I20)."""
        store = MemoryStore(lambda count: b"r" * count)
        where = f"--store=sqlite:{tmp_path}/b.db"
        reactor, service = a_service(where, store=store)
        assert service.mediator is not None
        result_of(service.mediator.accounts.add("Ia", "secret"))
        peer = client(reactor)
        peer.type("REGISTER\nIdentifier:Ia\nPassword:secret\nTransaction:1\n\n")
        found = re.search("^Token:(.+)$", peer.text(), re.MULTILINE)
        assert found is not None
        resume = f"REGISTER\nIdentifier:Ia\nToken:{found[1]}\n\n"
        with capturedLogs() as events:
            reactor, _ = a_service(where, store=store)
        assert events == [] or "no account yet" not in formatEvent(events[0])
        peer = client(reactor)
        peer.type(resume)
        assert peer.text() == "NOTIFY\nRegistration Completed.\n\n"
        (tmp_path / "b.db-key").unlink()
        reactor, _ = a_service(where, store=store)
        peer = client(reactor)
        peer.type(resume)
        assert "invalid or expired token" in peer.text()

    def test_clear_text(self) -> None:
        """A login in clear text from elsewhere needs the option too, wherever it listens (I25)."""
        for arguments, taken in (([], False), (["--allow-clear-text"], True)):
            reactor, service = a_service("--store=memory:", *arguments)
            assert service.mediator is not None
            result_of(service.mediator.accounts.add("Ia", "secret"))
            peer = connect(reactor.tcpServers[0][1], reactor, peer_host="192.0.2.1")
            peer.type("REGISTER\nIdentifier:Ia\nPassword:secret\n\n")
            assert ("Registration Completed." in peer.text()) is taken

    def test_threads(self) -> None:
        """One processor is left to the reactor, and at most four are used."""
        reactor: Any = FakeReactor()
        reactor.callFromThread = reactor.callLater
        passwords = mediator.passwords_in_threads(reactor)
        assert 1 <= passwords._threads <= 4
        assert passwords._threads <= max(1, len(os.sched_getaffinity(0)) - 1)
        passwords.start()
        passwords.stop()


class CertificateServiceTests:
    """``--auth certificate``, over real TLS in memory."""

    def shows(
        self, reactor: FakeReactor, pki: Pki, shown: Files | None, say: bytes
    ) -> tuple[Any, bytes]:
        """Someone shows a certificate, or none, and says something; the answer."""
        foreign = foreign_client(pki.ca, shown)
        peer = meet(reactor.tcpServers[0][1], reactor, foreign, say=say)
        return peer, bytes(foreign.received)

    def test_acts(self, own: Files, pki: Pki) -> None:
        """A connection acts as its certificate's identifier; none acts without one (A19, I4)."""
        reactor, _ = a_service(*tls(own, pki, "--auth=certificate"))
        shown = pki.terminal("山田太郎")
        _, answer = self.shows(reactor, pki, shown, b"REGISTER\nAccept:Create Ib\n\n")
        assert answer == b"NOTIFY\r\nRegistration Completed.\r\n\r\n"
        _, answer = self.shows(reactor, pki, shown, b"QUERY\nPERMITS\n\n")
        assert b"Accept:Create Ib" in answer
        _, answer = self.shows(reactor, pki, shown, b"REGISTER\nIdentifier:Ib\n\n")
        assert b"this connection belongs to another identifier" in answer
        _, answer = self.shows(reactor, pki, None, b"REGISTER\nIdentifier:Ib\n\n")
        assert b"Login Required." in answer
        _, answer = self.shows(reactor, pki, pki.mediator("east"), b"QUERY\nPERMITS\n\n")
        assert b"Login Required.\r\nCause:invalid certificate" in answer

    def test_revoked_since(self, own: Files, pki: Pki) -> None:
        """A connection whose certificate has been revoked is closed at the reload (I2)."""
        reactor, service = a_service(
            *tls(own, pki, "--auth=certificate", f"--revocation-list={pki.crl}")
        )
        bad, good = pki.terminal("Ia"), pki.terminal("Ib")
        first, _ = self.shows(reactor, pki, bad, b"REGISTER\n\n")
        second, _ = self.shows(reactor, pki, good, b"REGISTER\n\n")
        pki.revoke(bad)
        with capturedLogs() as events:
            service.renewal.reload()
        settle(reactor)
        assert first.closed
        assert not second.closed
        told = [formatEvent(event) for event in events]
        assert "A connection of Ia is closed: its certificate has been revoked" in told


class KeyTests:
    """The key of tokens, next to the database (I20)."""

    def test_made_once(self, tmp_path: Path) -> None:
        """Made at the first start, for its owner's eyes only, and the same from then on."""
        database = str(tmp_path / "broker.db")
        key = mediator.token_key(database, os.urandom)
        path = tmp_path / "broker.db-key"
        assert len(key) == KEY_BYTES
        assert path.read_bytes() == key
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert mediator.token_key(database, os.urandom) == key
        assert os.listdir(tmp_path) == ["broker.db-key"]

    def test_in_memory(self) -> None:
        """Without a database it is another each time, and nowhere."""
        assert mediator.token_key(None, os.urandom) != mediator.token_key(None, os.urandom)

    def test_cut_short(self, tmp_path: Path) -> None:
        """A start that was cut short while making it leaves no half of one (I9)."""
        (tmp_path / "broker.db-key.new").write_bytes(b"half")
        key = mediator.token_key(str(tmp_path / "broker.db"), os.urandom)
        assert len(key) == KEY_BYTES
        assert os.listdir(tmp_path) == ["broker.db-key"]

    @pytest.mark.parametrize(
        ("content", "mode", "why"),
        [
            *((b"k" * KEY_BYTES, mode, "others can read or change it") for mode in EXPOSED),
            *((content, 0o600, "holds no key of 32 bytes") for content in NO_KEYS),
        ],
    )
    def test_no_key(self, tmp_path: Path, content: bytes, mode: int, why: str) -> None:
        """A key that others can read, or an invalid one, is why it does not start (I3); the file
        stays unchanged.
        """
        path = tmp_path / "broker.db-key"
        path.write_bytes(content)
        path.chmod(mode)
        with pytest.raises(CannotStart, match=f"^{path}: {why}"):
            mediator.token_key(str(tmp_path / "broker.db"), os.urandom)
        assert path.read_bytes() == content

    @pytest.mark.parametrize("what", ["link", "folder", "no folder"])
    def test_no_file(self, tmp_path: Path, what: str) -> None:
        """A link, a folder, and a path where no file can be made are each one line."""
        folder = tmp_path / "none" if what == "no folder" else tmp_path
        path, why = folder / "broker.db-key", "No such file or directory"
        if what == "link":
            other = tmp_path / "other"
            other.write_bytes(b"k" * KEY_BYTES)
            other.chmod(0o600)
            path.symlink_to(other)
            why = "Too many levels of symbolic links"
        elif what == "folder":
            path.mkdir()
            why = ""
        with pytest.raises(CannotStart, match=f"^{path}: {why}"):
            mediator.token_key(str(folder / "broker.db"), os.urandom)
