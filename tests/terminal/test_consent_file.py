"""A terminal's own lists: what its file says, how it is edited, and what the mediator is told."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from zope.interface import implementer
from zope.interface.verify import verifyObject

from broker.interfaces import IConsent
from broker.tables.consent_lists import ConsentLists, NoConsent
from broker.terminal.consent_file import (
    ACCEPT,
    FILE_BYTES,
    REJECT,
    ConsentFile,
    edit_file,
    edit_text,
    parse_lists,
    read_lists,
)
from broker.terminal.registration.client import CONSENT_TIMEOUT
from tests.mediator.conftest import Logged, logged
from tests.support.clock import advance, result_of
from tests.terminal.scene import Scene

__all__ = ["logged"]

QUESTION = "QUERY\nACCEPT\nTransaction:7\n\n"


def answer(accept: str, reject: str | None = None) -> str:
    """What the mediator is told."""
    more = "" if reject is None else f"Reject:Create {reject}\n"
    return f"NOTIFY\nAccept:Create{accept}\n{more}Transaction:7\nCode:200\n\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file that says something."""
    path = tmp_path / "consent"
    path.write_text("# mine\n+ Ia\n- Ix\n", encoding="utf-8")
    path.chmod(0o600)
    return path


class ParsedTests:
    """What a file's bytes say (C4, C5)."""

    def test_lists(self) -> None:
        """Signs, blanks, comments, any language, any end of line; a number is no sign."""
        text = (
            "# whom I know\n\n+ Ia\n  +\t山田太郎 大阪府門真市大字門真1006 \n- @spam\n"
            "+ +81-6-6908-1121\r\n+ -\n- # no comment\n   # one\n+ @家族"
        )
        assert parse_lists(text.encode()) == (
            ["Ia", "山田太郎 大阪府門真市大字門真1006", "+81-6-6908-1121", "-", "@家族"],
            ["@spam", "# no comment"],
        )
        assert parse_lists(b"") == ([], [])

    @pytest.mark.parametrize(
        ("data", "why"),
        [
            (b"+ Ia\nIb\n", "line 2: begins with neither"),
            (b"+81-6-6908-1121\n", "line 1: begins with neither"),
            (b"-Ix\n", "line 1: begins with neither"),
            (b"+\n", "line 1: begins with neither"),
            (b"+ Ia,Ib\n", "line 1: an identifier holds a comma"),
            (b"+ Ia;uses=1\n", "line 1: an identifier holds a comma or a semicolon"),
            (b"+ @\n", "line 1: an identifier begins with @"),
            (b"+ I\x00\n", "line 1: an identifier holds a character that cannot be seen"),
            (b"+ Ia\rReject:x\n", "line 1: an identifier holds a character"),
            (b"+ \xff\n", "not UTF-8"),
            (b"+ Ia\n" * 1001, "at most 1000"),
            (b"".join(b"- %0100d\n" % n for n in range(700)), "at most 60000 bytes"),
        ],
    )
    def test_bad(self, data: bytes, why: str) -> None:
        """What is wrong anywhere is wrong altogether, and the line is named (I3)."""
        with pytest.raises(NoConsent, match=why):
            parse_lists(data)

    @given(st.binary(max_size=200))
    def test_anything(self, data: bytes) -> None:
        """Whatever stands there, it is lists or a refusal."""
        try:
            lists = parse_lists(data)
        except NoConsent:
            return
        assert all(isinstance(name, str) for part in lists for name in part)


def replaced(file: Path, make: Callable[[Path], object]) -> None:
    """Something else is there."""
    file.unlink()
    make(file)


class ReadTests:
    """What becomes of a file, with each question anew (C4, I3)."""

    def test_anew_each_time(self, file: Path, logged: Logged) -> None:
        """What is edited counts with the next question, even if size and time are as before."""
        asked = ConsentFile(str(file))
        assert verifyObject(IConsent, asked)
        file.chmod(0o644)  # others may read it: they learn no secret
        assert result_of(asked.lists()) == (["Ia"], ["Ix"])
        before = file.stat()
        file.write_text("# mine\n+ Ib\n- Ix\n")
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert result_of(asked.lists()) == (["Ib"], ["Ix"])
        assert logged.texts() == []

    def test_bad_accepts_nobody(self, file: Path, logged: Logged) -> None:
        """A bad or missing one accepts nobody, which is logged once; a good one counts again."""
        asked = ConsentFile(str(file))
        file.write_text("+ Ia\nwhat is this\n")
        bad = [result_of(asked.lists()) for _ in range(3)]
        file.unlink()
        bad += [result_of(asked.lists()) for _ in range(3)]
        assert bad == [((), ())] * 6
        file.write_text("+ Ia\n")
        assert result_of(asked.lists()) == (["Ia"], [])
        told = logged.texts()
        logged.failures()
        said = ["line 2: begins with neither", "No such file", "can be read again"]
        assert [text in line for text, line in zip(said, told, strict=True)] == [True] * 3

    @pytest.mark.parametrize(
        ("spoil", "why"),
        [
            # Whoever else may write it could consent in the user's stead.
            (lambda file: file.chmod(0o620), "others may write it"),
            (lambda file: file.chmod(0o602), "others may write it"),
            (lambda file: file.chmod(0o666), "others may write it"),
            # Likewise whose it is.
            (lambda file: os.chown(file, 65534, -1), "belongs to another user"),
            # What is no file is refused, and nobody waits for it.
            (lambda file: replaced(file, os.mkfifo), "not a regular file"),
            (lambda file: replaced(file, os.mkdir), "not a regular file|directory"),
            # One that is too large is not read to its end (I15).
            (lambda file: file.write_text("#" * FILE_BYTES + "\n"), "is longer than"),
        ],
    )
    def test_refused(
        self, file: Path, spoil: Callable[[Path], object], why: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A file that cannot be trusted, or is none, is refused whole."""
        spoil(file)
        if "user" in why:
            monkeypatch.setattr(os, "geteuid", lambda: 12345)
        with pytest.raises(NoConsent, match=why):
            read_lists(str(file))

    def test_written_meanwhile(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """One that changes while it is read is read again; if it always does, it says nothing."""
        fstat, calls = os.fstat, []

        def changing(descriptor: int) -> os.stat_result:
            calls.append(descriptor)
            if len(calls) % 2 == 0 and len(calls) <= changes:
                with file.open("a") as more:
                    more.write("- Iy\n")
            return fstat(descriptor)

        monkeypatch.setattr(os, "fstat", changing)
        changes = 2
        assert read_lists(str(file)) == (["Ia"], ["Ix", "Iy"])
        changes = 1000
        with pytest.raises(NoConsent, match="keeps changing"):
            read_lists(str(file))


class EditTests:
    """Editing it safely (C4)."""

    @pytest.mark.parametrize(
        ("sign", "listed", "names", "expected"),
        [
            (ACCEPT, True, ["Ib"], "# mine\n+ Ia\n- Ix\n+ Ib\n"),
            (ACCEPT, True, ["Ix"], "# mine\n+ Ia\n- Ix\n+ Ix\n"),
            (REJECT, True, ["Ia", "Ia", "@g"], "# mine\n+ Ia\n- Ix\n- Ia\n- @g\n"),
            (ACCEPT, False, ["Ia", "Ix", "nobody"], "# mine\n- Ix\n"),
            (REJECT, False, ["Ia", "Ix", "nobody"], "# mine\n+ Ia\n"),
        ],
    )
    def test_each(
        self, file: Path, sign: str, listed: bool, names: list[str], expected: str
    ) -> None:
        """Each stands once on that list, or not at all; all else stays, comments included."""
        assert edit_file(str(file), names, sign, listed=listed) == read_lists(str(file))
        assert file.read_text() == expected
        assert [each.name for each in file.parent.iterdir()] == ["consent"]

    def test_missing(self, tmp_path: Path) -> None:
        """A missing file is made to add a name to, for its user alone.

        To remove one from it is an error: its name is mistyped (C4).
        """
        path = tmp_path / "new"
        with pytest.raises(FileNotFoundError):
            edit_file(str(path), ["Ia"], ACCEPT, listed=False)
        assert list(tmp_path.iterdir()) == []
        edit_file(str(path), ["Ia"], ACCEPT, listed=True)
        assert (path.read_text(), path.stat().st_mode & 0o777) == ("+ Ia\n", 0o600)

    @pytest.mark.parametrize(
        ("text", "why"),
        [("+ Ia\n?\n", "line 2"), ("".join(f"+ I{n}\n" for n in range(1000)), "1000")],
    )
    def test_bad_stays(self, file: Path, text: str, why: str) -> None:
        """A bad one is left unchanged, and so is one that would be too long (A5)."""
        file.write_text(text)
        with pytest.raises(NoConsent, match=why):
            edit_file(str(file), ["more"], ACCEPT, listed=True)
        assert file.read_text() == text
        assert [each.name for each in file.parent.iterdir()] == ["consent"]

    def test_mode_and_link(self, file: Path, tmp_path: Path) -> None:
        """It keeps its mode and its owner, and a link to it goes on leading to it."""
        file.chmod(0o644)
        os.chown(file, 65534, 65534)
        link = tmp_path / "link"
        link.symlink_to(file)
        edit_file(str(link), ["Ic"], ACCEPT, listed=True)
        assert link.is_symlink()
        found = file.stat()
        assert (found.st_mode & 0o777, found.st_uid, found.st_gid) == (0o644, 65534, 65534)
        assert file.read_text().endswith("+ Ic\n")

    def test_many_at_once(self, file: Path) -> None:
        """Of many who edit it at once none is lost."""
        with ThreadPoolExecutor(20) as pool:
            edits = [
                pool.submit(edit_file, str(file), [f"T{n}"], ACCEPT, listed=True) for n in range(20)
            ]
        assert all(edit.result() for edit in edits)
        assert set(read_lists(str(file)).accepted) == {"Ia"} | {f"T{n}" for n in range(20)}

    @given(
        st.lists(st.sampled_from(["Ia", "Ib", "@g", "+81", "- x"]), min_size=1),
        st.sampled_from([ACCEPT, REJECT]),
        st.booleans(),
        st.lists(st.sampled_from(["# c", "", "+ Ia", "- Ia", "+ @g", "- - x", "+ +81", "+ Ic"])),
    )
    def test_says_so(self, names: list[str], sign: str, listed: bool, lines: list[str]) -> None:
        """Whatever it said, that list then says that of those; all else is as it was."""
        before = parse_lists("\n".join(lines).encode())
        after = parse_lists(edit_text("\n".join(lines), names, sign, listed=listed).encode())
        for mark, old, new in zip((ACCEPT, REJECT), before, after, strict=True):
            if mark == sign:
                others = [name for name in old if name not in names]
                assert new == others + (list(dict.fromkeys(names)) if listed else [])
            else:
                assert new == old


@implementer(IConsent)
class Application:
    """An application that accepts these callers, and refuses those; or fails, or takes time."""

    def __init__(self, accepted: Any = (), rejected: Sequence[str] = ()) -> None:
        self._accepted = accepted
        self._rejected = rejected

    async def lists(self) -> ConsentLists:
        if isinstance(self._accepted, Exception):
            raise self._accepted
        if isinstance(self._accepted, Deferred):
            return ConsentLists(*await self._accepted)
        return ConsentLists(self._accepted, self._rejected)


class TerminalTests:
    """What a terminal registers, and what it answers (S4001, S4003)."""

    def asked(self, consent: IConsent | None = None) -> Scene:
        """A terminal that was asked for its lists."""
        scene = Scene(consent=consent)
        scene.complete()
        scene.line.type(QUESTION)
        return scene

    def test_registers(self) -> None:
        """Its name and its policy go with the message by which it logs in (C1)."""
        fields = Scene(policy="Ask", name="taro@example.jp").said().fields
        assert (fields["Name"], fields["Policy"]) == ("taro@example.jp", "Ask")
        assert not {"Name", "Policy"} & Scene().said().fields.keys()

    @pytest.mark.parametrize(
        ("consent", "expected"),
        [
            (Application(["Ia", "@family"], ["Ix"]), answer(" Ia,@family", "Ix")),
            (Application(["Ia"]), answer(" Ia")),
            (Application([], ["Ix"]), answer("", "Ix")),
            (Application(), answer("")),
            (None, answer("")),  # where nothing was said of consent, no caller is accepted (I3)
        ],
    )
    def test_answers(self, consent: IConsent | None, expected: str) -> None:
        """It sends both lists, whole: it is the mediator that compares."""
        assert self.asked(consent).line.text() == expected

    def test_long(self) -> None:
        """Long lists go in several lines, in one message that the mediator takes."""
        names = [f"terminal-{n:04}" for n in range(1000)]
        message = self.asked(Application(names, names[:900])).said()
        told = ",".join(edit.partition(" ")[2] for edit in message.edits("Accept"))
        assert told.split(",") == names
        assert len(message.encode()) < 64 * 1024

    @pytest.mark.parametrize(
        ("accepted", "why"),
        [
            (ValueError("the user's window is gone"), "window is gone"),
            *[([name], "NoConsent|ValueError") for name in ("Ia,Ib", "Ia;uses=1", "", "@")],
            (["Ia\nReject:Create"], "NoConsent|ValueError"),
            (["I"] * 1001, "at most 1000"),
        ],
    )
    def test_bad_application(self, accepted: Any, why: str, logged: Logged) -> None:
        """One that fails, or whose list is not valid, accepts no caller, and adds no field (I3)."""
        assert self.asked(Application(accepted)).line.text() == answer("")
        (failure,) = logged.failures()
        assert re.search(why, failure)

    def test_asks_its_user(self) -> None:
        """One may take its time, and other questions are answered until then."""
        user: Deferred[Any] = Deferred()
        line = self.asked(Application(user)).line
        line.type("QUERY\nSTATUS\nTransaction:8\n\n")
        assert line.text() == "NOTIFY\nSTATUS Busy.\nTransaction:8\nCode:200\n\n"
        user.callback((["Ia"], []))
        assert line.text() == answer(" Ia")

    def test_takes_too_long(self) -> None:
        """One that never answers accepts no caller, and leaves nothing behind (I15)."""
        user: Deferred[Any] = Deferred()
        scene = self.asked(Application(user))
        advance(scene.clock, CONSENT_TIMEOUT - 0.1)
        assert not user.called
        advance(scene.clock, 0.1)
        assert (user.called, scene.line.text()) == (True, answer(""))

    def test_gone_while_asked(self) -> None:
        """Where the mediator goes away, the application is not waited for."""
        user: Deferred[Any] = Deferred()
        self.asked(Application(user)).line.vanish()
        assert user.called
