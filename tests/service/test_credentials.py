"""Where passwords come from: files, what is kept for one mediator, a person at a terminal."""

from __future__ import annotations

import getpass
import json
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest

from broker.files import InvalidFile
from broker.service.settings.credentials import (
    FoundPassword,
    Keyring,
    NoPasswordGiven,
    PasswordSource,
    ask_password,
    check_password,
    read_password,
)
from tests.service.scene import EXPOSED, a_file

MEDIATOR = "tls:signal.example:1202"
PASSWORD = "correct horse"
RECORD = {"identifier": "Ib", "mediator": MEDIATOR}


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    """A keyring with nothing in it."""
    return Keyring(tmp_path / "config" / "broker")


class FileTests:
    """``--password-file``."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        """A password's file."""
        return a_file(tmp_path / "password")

    @pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
    def test_one_line(self, path: Path, end: bytes) -> None:
        """The one line is the password, without what would not arrive (A19)."""
        path.write_bytes(b" correct horse\t" + end)
        assert read_password(str(path)) == PASSWORD

    @pytest.mark.parametrize("mode", EXPOSED)
    def test_others_can_read_it(self, path: Path, mode: int) -> None:
        """A file that others can read or change is refused, with the remedy (I18)."""
        path.chmod(mode)
        why = f"^{path}: others can read or change it: chmod 600 {path}$"
        with pytest.raises(InvalidFile, match=why):
            read_password(str(path))

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
    def test_of_another_user(self, path: Path) -> None:
        """One that belongs to another user can be read by that user (I18)."""
        os.chown(path, 65534, -1)
        with pytest.raises(InvalidFile, match="belongs to another user"):
            read_password(str(path))

    @pytest.mark.parametrize(
        "content", [b"", b"\n", b"two\nlines\n", b"\xff\n", b"x" * 513, b"x" * 100_000, b"a\x1bb"]
    )
    def test_no_password(self, path: Path, content: bytes) -> None:
        """A file without a password is named, and its content is not."""
        path.write_bytes(content)
        why = f"^{path}: holds no password: one line of 1 to 512 characters$"
        with pytest.raises(InvalidFile, match=why):
            read_password(str(path))

    def test_no_file(self, tmp_path: Path) -> None:
        """So are a missing file and a pipe, which is not waited for."""
        os.mkfifo(tmp_path / "pipe", 0o600)
        for name, why in {"nowhere": "No such file", "pipe": "not a regular file"}.items():
            with pytest.raises(InvalidFile, match=f"{name}: {why}"):
                read_password(str(tmp_path / name))

    def test_what_can_be_sent(self) -> None:
        """Characters of any language are valid."""
        assert check_password("合言葉\u3000ひみつ") == "合言葉\u3000ひみつ"


class KeyringTests:
    """What ``broker login`` keeps."""

    def test_kept(self, keyring: Keyring) -> None:
        """A password that is kept is found again; another takes its place."""
        assert keyring.read("Ib", MEDIATOR) is None
        keyring.keep("Ib", MEDIATOR, "old")
        keyring.keep("Ib", MEDIATOR, PASSWORD)
        assert keyring.read("Ib", MEDIATOR) == PASSWORD

    def test_private(self, keyring: Keyring, tmp_path: Path) -> None:
        """No other user can read it, whatever the umask; no other file is left there (I18)."""
        before = os.umask(0)
        try:
            path = keyring.keep("Ib", MEDIATOR, PASSWORD)
        finally:
            os.umask(before)
        assert path.stat().st_mode & 0o777 == 0o600
        ours = tmp_path / "config" / "broker"
        for folder in (ours, ours / "passwords", path.parent):
            assert folder.stat().st_mode & 0o777 == 0o700
        assert list(path.parent.iterdir()) == [path]

    @pytest.mark.parametrize(
        ("identifier", "mediator"),
        [
            ("Ic", MEDIATOR),
            ("Ib", "tls:signal.example:1203"),
            ("Ib", "tls:signal2.example:1202"),
            ("Ib", "tcp:signal.example:1202"),
        ],
    )
    def test_for_one_mediator(self, keyring: Keyring, identifier: str, mediator: str) -> None:
        """It is found for no other identifier, host or port, and not without TLS (I26)."""
        keyring.keep("Ib", MEDIATOR, PASSWORD)
        assert keyring.read(identifier, mediator) is None

    def test_a_record_in_the_wrong_place(self, keyring: Keyring) -> None:
        """A record names its mediator: copied to another's place it is still not for that (I26)."""
        record = keyring.keep("Ib", MEDIATOR, PASSWORD).read_bytes()
        odd = b'{"identifier": "Ib", "mediator": 1}'
        for identifier, mediator, content in (
            ("Ib", "tcp:192.0.2.1:1201", record),
            ("Ic", MEDIATOR, record),
            ("Ib", MEDIATOR, odd),
        ):
            keyring.keep(identifier, mediator, "x").write_bytes(content)
            assert keyring.read(identifier, mediator) is None

    @pytest.mark.parametrize("name", ["..", "/etc/passwd", "山田太郎" * 10, "a/../../b", "x" * 128])
    def test_any_identifier(self, keyring: Keyring, name: str, tmp_path: Path) -> None:
        """No identifier leads out of the folder, or is too long for a file's name (A18)."""
        path = keyring.keep(name, MEDIATOR, PASSWORD)
        assert path.resolve().is_relative_to(tmp_path / "config" / "broker" / "passwords")
        assert keyring.read(name, MEDIATOR) == PASSWORD

    def test_others_can_read_it(self, keyring: Keyring) -> None:
        """A record that others can read, or a folder they can look into, is refused (I18)."""
        path = keyring.keep("Ib", MEDIATOR, PASSWORD)
        for exposed in (path, *list(path.parents)[:3]):
            good, mode, what = (0o600, 0o640, "read") if exposed == path else (0o700, 0o750, "look")
            exposed.chmod(mode)
            why = f"{exposed}: others can {what} .*: chmod {good:o} {exposed}"
            with pytest.raises(InvalidFile, match=why):
                keyring.read("Ib", MEDIATOR)
            if exposed != path:
                with pytest.raises(InvalidFile, match="chmod 700"):
                    keyring.keep("Ib", MEDIATOR, "new")
            exposed.chmod(good)
        assert keyring.read("Ib", MEDIATOR) == PASSWORD

    @pytest.mark.parametrize(
        "content",
        [b"", b"[]", b"{}", b"\xff", b"7", json.dumps({**RECORD, "password": 7}).encode()],
    )
    def test_damaged(self, keyring: Keyring, content: bytes) -> None:
        """What is no record, or holds no password, is reported with the remedy."""
        keyring.keep("Ib", MEDIATOR, PASSWORD).write_bytes(content)
        with pytest.raises(InvalidFile, match="is damaged: do broker login again"):
            keyring.read("Ib", MEDIATOR)

    def test_forgotten(self, keyring: Keyring) -> None:
        """What is forgotten is gone; those of others stay."""
        keyring.keep("Ib", MEDIATOR, PASSWORD)
        keyring.keep("Ic", MEDIATOR, "other")
        assert keyring.forget("Ib", MEDIATOR)
        assert keyring.read("Ib", MEDIATOR) is None
        assert not keyring.forget("Ib", MEDIATOR)
        assert keyring.read("Ic", MEDIATOR) == "other"
        assert keyring.forget("Ic", MEDIATOR)
        assert not keyring.path("Ic", MEDIATOR).parent.exists()

    def test_whose(self, tmp_path: Path) -> None:
        """It is in the folder that the environment names, else in the home's ``.config``."""

        def folder(**environ: str) -> Path:
            return Keyring.of(environ).path("Ib", MEDIATOR).parents[2]

        home = str(tmp_path)
        assert folder(XDG_CONFIG_HOME="/a/b", HOME=home) == Path("/a/b/broker")
        assert folder(XDG_CONFIG_HOME="a/b", HOME=home) == tmp_path / ".config" / "broker"
        assert folder(HOME=home) == tmp_path / ".config" / "broker"


class SourceTests:
    """Which of them counts."""

    def test_order(self, keyring: Keyring, tmp_path: Path) -> None:
        """A file that is named wins; it is read each time."""
        path = a_file(tmp_path / "password")
        kept = keyring.keep("Ib", MEDIATOR, "kept")
        named = PasswordSource("Ib", MEDIATOR, str(path), keyring)
        assert named.find() == FoundPassword(PASSWORD, str(path))
        path.write_text("new\n")
        assert named() == "new"
        found = PasswordSource("Ib", MEDIATOR, None, keyring).find()
        assert found == FoundPassword("kept", str(kept))
        assert PasswordSource("Ic", MEDIATOR, None, keyring)() is None

    def test_a_bad_file_is_no_reason_for_another(self, keyring: Keyring, tmp_path: Path) -> None:
        """Where the named file is not good, nothing else is taken in its place (I3)."""
        keyring.keep("Ib", MEDIATOR, "kept")
        with pytest.raises(InvalidFile):
            PasswordSource("Ib", MEDIATOR, str(tmp_path / "nowhere"), keyring)()

    def test_repr(self, keyring: Keyring, tmp_path: Path) -> None:
        """No repr shows it (I18)."""
        source = PasswordSource("Ib", MEDIATOR, str(a_file(tmp_path / "x")), keyring)
        assert PASSWORD not in repr(source) + repr(source.find()) + repr(vars(source))


VISIBLE = getpass.GetPassWarning("it may be echoed")


class PromptTests:
    """A person at a terminal is asked; that nothing is shown: tests/integration/test_login.py."""

    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            ("x", FoundPassword("x", None)),
            pytest.param(VISIBLE, None, id="no question if the answer would be visible (I18)"),
            pytest.param(OSError(), None, id="no question without a terminal"),
            (KeyboardInterrupt(), NoPasswordGiven),
            (EOFError(), NoPasswordGiven),
            ("", InvalidFile),
            ("\x1b", InvalidFile),
        ],
    )
    def test_answers(
        self, answer: str | BaseException, expected: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Who types ^C or ^D gives up; what can be no password is told, without it (I18). ^C is
        again what it was, once the question is over.
        """

        def open_terminal(*_: object) -> int:
            if isinstance(answer, OSError):
                raise answer
            return os.dup(0)

        def ask(prompt: str) -> str:
            assert prompt == "Password of Ib: "
            if isinstance(answer, Warning):
                warnings.warn(answer, stacklevel=1)
            elif isinstance(answer, BaseException):
                raise answer
            return str(answer)

        monkeypatch.setattr(os, "open", open_terminal)
        monkeypatch.setattr("getpass.getpass", ask)
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            if isinstance(expected, type):
                with pytest.raises(expected) as given_up:
                    ask_password("Ib")
                assert "\x1b" not in str(given_up.value)
            else:
                assert ask_password("Ib") == expected
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        finally:
            signal.signal(signal.SIGINT, before)
