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
from tests.service.scene import (
    EXPOSED,
    LOOPBACK_TLS,
    MEDIATOR,
    REGISTERED,
    Scene,
    a_file,
    a_mediator,
    pair,
    parse,
)
from tests.support.certificates import Files, Pki, foreign_client, meet
from tests.support.clock import settle
from tests.support.reactor import FakeReactor

LOG_IN = "REGISTER\nIdentifier:Ia\nPassword:secret\n\n"
#: Contents of a file that are no key.
NO_KEYS = (b"", b"short", b"k" * (KEY_BYTES + 1))


class OptionsTests:
    """What goes with ``--auth``."""

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
        scene = Scene(MEDIATOR, "--store=memory:", *arguments)
        silent = scene.client()
        scene.advance(seconds - 0.1)
        assert not silent.closed
        scene.advance(0.2)
        assert silent.closed

    def test_ledger(self) -> None:
        """The options reach the ledger."""
        assert parse(MEDIATOR, "--ledger-days=7")["ledger-days"] == 7
        first, every = a_mediator("--ledger=first"), a_mediator()
        assert first.service.mediator.context.disclosures.first
        assert not every.service.mediator.context.disclosures.first


class PasswordServiceTests:
    """``twistd broker`` as it comes."""

    def test_logs_in(self, tmp_path: Path) -> None:
        """No terminal can act until the operator makes an account, and the log says how (A19)."""
        with capturedLogs() as events:
            scene = Scene(MEDIATOR, f"--store=sqlite:{tmp_path}/b.db")
        told = [formatEvent(event) for event in events]
        assert "There is no account yet: broker account add ID makes the first one" in told
        assert "Login Required." in scene.answer("REGISTER\nIdentifier:Ia\n\n")
        scene.account()
        assert scene.answer(LOG_IN) == REGISTERED

    def test_resumes_after_a_restart(self, tmp_path: Path) -> None:
        """A token is valid after a restart, as long as its key is next to the database (I20)."""
        arguments = (MEDIATOR, f"--store=sqlite:{tmp_path}/b.db")
        store = MemoryStore(lambda count: b"r" * count)
        scene = Scene(*arguments, store=store)
        scene.account()
        answer = scene.answer(LOG_IN.replace("\n\n", "\nTransaction:1\n\n"))
        found = re.search("^Token:(.+)$", answer, re.MULTILINE)
        assert found is not None
        resume = f"REGISTER\nIdentifier:Ia\nToken:{found[1]}\n\n"
        with capturedLogs() as events:
            scene = Scene(*arguments, store=store)
        assert events == [] or "no account yet" not in formatEvent(events[0])
        assert scene.answer(resume) == REGISTERED
        (tmp_path / "b.db-key").unlink()
        assert "invalid or expired token" in Scene(*arguments, store=store).answer(resume)

    @pytest.mark.parametrize(("arguments", "taken"), [([], False), (["--allow-clear-text"], True)])
    def test_clear_text(self, arguments: list[str], taken: bool) -> None:
        """A login in clear text from elsewhere needs the option too, wherever it listens (I25)."""
        scene = Scene(MEDIATOR, "--store=memory:", *arguments)
        scene.account()
        answer = scene.answer(LOG_IN, peer_host="192.0.2.1")
        assert ("Registration Completed." in answer) is taken

    def test_threads(self) -> None:
        """One processor is left to the reactor, and at most four are used."""
        reactor: Any = FakeReactor()
        reactor.callFromThread = reactor.callLater
        passwords = mediator.passwords_in_threads(reactor)
        assert 1 <= passwords._threads <= min(4, max(1, len(os.sched_getaffinity(0)) - 1))
        passwords.start()
        passwords.stop()


class CertificateServiceTests:
    """``--auth certificate``, over real TLS in memory."""

    @pytest.fixture
    def scene(self, own: Files, pki: Pki) -> Scene:
        """A mediator that asks for certificates; no port is open where none can be shown."""
        more = (f"--client-ca={pki.ca}", f"--revocation-list={pki.crl}")
        scene = Scene(MEDIATOR, LOOPBACK_TLS, "--auth=certificate", *pair(own), *more)
        assert scene.ports == [1202]
        return scene

    def shows(self, scene: Scene, pki: Pki, shown: Files | None, say: str) -> tuple[Any, bytes]:
        """Someone shows a certificate, or none, and says something; the answer."""
        foreign = foreign_client(pki.ca, shown)
        factory = scene.reactor.tcpServers[0][1]
        peer = meet(factory, scene.reactor, foreign, say=say.encode())
        return peer, bytes(foreign.received)

    def test_acts(self, scene: Scene, pki: Pki) -> None:
        """A connection acts as its certificate's identifier; none acts without one (A19, I4)."""
        taro, permits = pki.terminal("山田太郎"), "QUERY\nPERMITS\n\n"
        another = "REGISTER\nIdentifier:Ib\n\n"
        for shown, said, expected in (
            (taro, "REGISTER\nAccept:Create Ib\n\n", REGISTERED),
            (taro, permits, "Accept:Create Ib"),
            (taro, another, "this connection belongs to another identifier"),
            (None, another, "Login Required."),
            (pki.mediator("east"), permits, "Login Required.\nCause:invalid certificate"),
        ):
            _, answer = self.shows(scene, pki, shown, said)
            text = answer.decode().replace("\r\n", "\n")
            assert text == expected if expected == REGISTERED else expected in text

    def test_revoked_since(self, scene: Scene, pki: Pki) -> None:
        """A connection whose certificate has been revoked is closed at the reload (I2)."""
        bad, good = pki.terminal("Ia"), pki.terminal("Ib")
        first, second = (self.shows(scene, pki, shown, "REGISTER\n\n")[0] for shown in (bad, good))
        pki.revoke(bad)
        with capturedLogs() as events:
            scene.service.renewal.reload()
        settle(scene.reactor)
        assert (first.closed, second.closed) == (True, False)
        told = [formatEvent(event) for event in events]
        assert "A connection of Ia is closed: its certificate has been revoked" in told


class KeyTests:
    """The key of tokens, next to the database (I20)."""

    def key(self, folder: Path) -> bytes:
        """The key of the database in a folder."""
        return mediator.token_key(str(folder / "broker.db"), os.urandom)

    def test_made_once(self, tmp_path: Path) -> None:
        """Made at the first start, for its owner's eyes only, and the same from then on; a start
        that was cut short while making it leaves no half of one (I9).
        """
        (tmp_path / "broker.db-key.new").write_bytes(b"half")
        key, path = self.key(tmp_path), tmp_path / "broker.db-key"
        assert (len(key), path.read_bytes()) == (KEY_BYTES, key)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert self.key(tmp_path) == key
        assert os.listdir(tmp_path) == ["broker.db-key"]

    def test_in_memory(self) -> None:
        """Without a database it is another each time, and nowhere."""
        assert mediator.token_key(None, os.urandom) != mediator.token_key(None, os.urandom)

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
        path = a_file(tmp_path / "broker.db-key", content, mode)
        with pytest.raises(CannotStart, match=f"^{path}: {why}"):
            self.key(tmp_path)
        assert path.read_bytes() == content

    @pytest.mark.parametrize(
        ("what", "why"),
        [
            ("link", "Too many levels of symbolic links"),
            ("folder", ""),
            ("no folder", "No such file or directory"),
        ],
    )
    def test_no_file(self, tmp_path: Path, what: str, why: str) -> None:
        """A link, a folder, and a path where no file can be made are each one line."""
        folder = tmp_path / "none" if what == "no folder" else tmp_path
        path = folder / "broker.db-key"
        if what == "link":
            path.symlink_to(a_file(tmp_path / "other", b"k" * KEY_BYTES))
        elif what == "folder":
            path.mkdir()
        with pytest.raises(CannotStart, match=f"^{path}: {why}"):
            self.key(folder)
