"""Files over a call: whole and confirmed, or not at all."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol
from twisted.logger import capturedLogs, formatEvent
from zope.interface.verify import verifyObject

from broker.interfaces import ICallHandler
from broker.messages.grammar import identifier
from broker.terminal.apps import files
from broker.terminal.apps.files import (
    FileReceiver,
    FileSender,
    safe_name,
)
from broker.terminal.apps.receipt import Receipt, Tally, TransferFailed, read_receipt
from tests.support.clock import advance
from tests.terminal.keys import CALLER
from tests.terminal.network import Outcome
from tests.terminal.speakers import Call

NOON = datetime(2026, 7, 4, 12, 0, 0, tzinfo=UTC)
CONTENT = random.Random(1).randbytes(300_000)


def why(outcome: Outcome) -> str:
    """Why a transfer failed."""
    assert isinstance(outcome.error, TransferFailed), outcome.error
    return str(outcome.error)


class Transfer:
    """One file on its way to a receiver."""

    def __init__(self, receiver: FileReceiver, content: Any = CONTENT, **options: Any) -> None:
        progress = options.pop("progress", None)
        file = io.BytesIO(content) if isinstance(content, bytes) else content
        self.sender = FileSender(file, progress=progress)
        self.outcome = Outcome(self.sender.done)
        call = Call(lambda: self.sender, lambda: receiver.call(CALLER, "S1"), **options)
        self.pair = call.pair

    def run(self) -> Outcome:
        """Let the call go to its end."""
        self.pair.pump()
        return self.outcome


def make_receiver(folder: Path, most_bytes: int = 1 << 20, **options: Any) -> FileReceiver:
    """A receiver whose time stands still."""
    return FileReceiver(str(folder), most_bytes, now=lambda: NOON, **options)


def names(folder: Path) -> list[str]:
    """The files of a folder."""
    return sorted(os.listdir(folder))


class TransferTests:
    """A file that arrives."""

    @pytest.mark.parametrize(
        ("size", "chunk"),
        [(0, None), (1, None), (files.CHUNK, None), (300_000, None), (2000, 7)],
    )
    def test_arrives_whole(self, tmp_path: Path, size: int, chunk: int | None) -> None:
        """The file is there, to the byte, in whatever pieces it came, for its owner alone; the
        caller learns its digest, and the log says in one line what came from which caller.
        """
        content, seen = CONTENT[:size], list[int]()
        progress = SimpleNamespace(at=seen.append)
        path = tmp_path / "20260704T120000Z-Ia"
        with capturedLogs() as events:
            call = Transfer(make_receiver(tmp_path), content, chunk=chunk, progress=progress)
            for _ in range(3):
                call.pair.step()
            part = [f"{path.name}.part"]  # until it is whole
            assert names(tmp_path) == part or size <= files.CHUNK
            outcome = call.run()
        digest = sha256(content).hexdigest()
        assert outcome.value == (size, digest)
        assert names(tmp_path) == [path.name]
        assert path.read_bytes() == content
        assert path.stat().st_mode & 0o777 == 0o600
        (line,) = [formatEvent(event) for event in events]
        assert line == f"Received {path} from Ia: {size} bytes, SHA-256 {digest}"
        assert seen == sorted(seen)
        assert not size or seen[-1] == size

    def test_named_after_time_and_caller(self, tmp_path: Path) -> None:
        """The name says when and who, and a second file of the same second has another."""
        receiver = make_receiver(tmp_path)
        Transfer(receiver).run()
        Transfer(receiver, b"two").run()
        assert names(tmp_path) == ["20260704T120000Z-Ia", "20260704T120000Z-Ia-2"]
        assert (tmp_path / "20260704T120000Z-Ia").read_bytes() == CONTENT

    def test_confirmed_only_when_durable(self, tmp_path: Path) -> None:
        """The receipt waits until the disk has the file (I8)."""
        disk: list[tuple[Callable[[], None], Deferred[None]]] = []

        def later(function: Callable[[], None]) -> Deferred[None]:
            deferred: Deferred[None] = Deferred()
            disk.append((function, deferred))
            return deferred

        call = Transfer(make_receiver(tmp_path, in_thread=later))
        assert call.run().value is None
        assert names(tmp_path) == ["20260704T120000Z-Ia.part"]
        ((function, deferred),) = disk
        function()
        deferred.callback(None)
        assert call.run().value is not None
        assert names(tmp_path) == ["20260704T120000Z-Ia"]

    def test_synced_before_it_is_renamed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """After a power loss there is no whole name on half a file: first fsync, then rename."""
        done: list[str] = []
        fsync, rename = os.fsync, os.replace

        def note_fsync(fd: int) -> None:
            done.append("fsync")
            fsync(fd)

        def note_rename(old: str, new: str) -> None:
            done.append("rename")
            rename(old, new)

        monkeypatch.setattr(os, "fsync", note_fsync)
        monkeypatch.setattr(os, "replace", note_rename)
        assert Transfer(make_receiver(tmp_path)).run().value is not None
        assert done == ["fsync", "rename", "fsync"]

    def test_never_held_whole(self, tmp_path: Path) -> None:
        """Only as much of the file is read as the callee takes: the sender waits for a slow one."""
        file = io.BytesIO(CONTENT)
        call = Transfer(make_receiver(tmp_path), file)
        assert file.tell() <= 2 * files.CHUNK
        call.run()
        assert file.tell() == len(CONTENT)


class NoFileTests:
    """Whatever goes wrong, no file is left that could be taken for a whole one."""

    @pytest.mark.parametrize("how", ["cut", "cancelled"])
    def test_broken_off(self, tmp_path: Path, how: str) -> None:
        """A call that breaks, or is given up, leaves nothing, and a line in the log (I21)."""
        call = Transfer(make_receiver(tmp_path))
        for _ in range(3):
            call.pair.step()
        assert names(tmp_path) == ["20260704T120000Z-Ia.part"]
        with capturedLogs() as events:
            if how == "cut":
                call.pair.cut()
                assert call.outcome.error is not None
            else:
                call.sender.done.cancel()
            call.run()
        assert names(tmp_path) == []
        line = formatEvent(events[0])
        assert line.startswith("Dropped a file from Ia after ")
        assert how == "cut" or "the caller gave up" in line

    def test_too_large(self, tmp_path: Path) -> None:
        """Beyond the cap, and no sooner, the call is broken off, and the caller told why (I15)."""
        outcome = Transfer(make_receiver(tmp_path, len(CONTENT) - 1)).run()
        assert "a file here has at most 299999 bytes" in why(outcome)
        assert names(tmp_path) == []
        assert Transfer(make_receiver(tmp_path, len(CONTENT))).run().value is not None

    def test_too_many_at_once(self, tmp_path: Path) -> None:
        """One call more than may be received at a time is not taken; later ones are, also after
        one that has failed (I15).
        """
        receiver = make_receiver(tmp_path, len(CONTENT), most_files=1)
        first = Transfer(receiver)
        first.pair.step()
        assert "the call is not taken" in why(Transfer(receiver).run())
        assert first.run().value is not None
        assert Transfer(receiver, CONTENT + b"x").run().error is not None
        assert Transfer(receiver).run().value is not None

    def test_disk_full(self, tmp_path: Path) -> None:
        """A disk that is full breaks the call off; the caller learns no detail of ours."""
        receiver = make_receiver(tmp_path)
        full = receiver.call

        def call(caller: str, session: str) -> Any:
            protocol: Any = full(caller, session)
            path = protocol._file
            protocol._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115 - closed by it
            path.close()
            return protocol

        receiver.call = call  # type: ignore[method-assign]
        with capturedLogs() as events:
            outcome = Transfer(receiver).run()
        assert "the receiver can't store it" in why(outcome)
        assert "space" not in why(outcome)
        assert names(tmp_path) == []
        assert "No space left on device" in formatEvent(events[0])

    def test_cannot_be_kept(self, tmp_path: Path) -> None:
        """A file that can't be made durable is not confirmed."""

        def fails(function: Callable[[], None]) -> Deferred[None]:
            deferred: Deferred[None] = Deferred()
            deferred.errback(OSError(5, "Input/output error"))
            return deferred

        outcome = Transfer(make_receiver(tmp_path, in_thread=fails)).run()
        assert "the receiver can't store it" in why(outcome)
        assert names(tmp_path) == []

    def test_folder_gone(self, tmp_path: Path) -> None:
        """Where no file can be made the call is not taken."""
        outcome = Transfer(make_receiver(tmp_path / "gone")).run()
        assert "the call is not taken" in why(outcome)

    def test_existing_files_stay(self, tmp_path: Path) -> None:
        """Nothing that is there is written over, a link to elsewhere least of all."""
        outside = tmp_path / "outside"
        outside.write_text("mine")
        folder = tmp_path / "in"
        folder.mkdir()
        (folder / "20260704T120000Z-Ia").write_text("old")
        (folder / "20260704T120000Z-Ia-2.part").symlink_to(outside)
        assert Transfer(make_receiver(folder)).run().value is not None
        assert outside.read_text() == "mine"
        assert (folder / "20260704T120000Z-Ia").read_text() == "old"
        assert (folder / "20260704T120000Z-Ia-3").read_bytes() == CONTENT


class Answering(Protocol):
    """A callee that answers with given bytes whatever it gets, and may end the call at once."""

    def __init__(self, answer: bytes, *, ends: bool = False) -> None:
        self._answer = answer
        self._ends = ends

    def connectionMade(self) -> None:
        channel: Any = self.transport
        channel.write(self._answer)
        if self._ends:
            channel.loseConnection()


def receipt_of(data: bytes) -> Receipt:
    """The right receipt."""
    tally = Tally()
    tally.add(data)
    return tally.receipt


class SenderTests:
    """The sender believes nothing but the right receipt."""

    def answered(self, answer: bytes, content: bytes = b"abc", **options: bool) -> Outcome:
        """What comes of a call whose callee gives this answer when our data has ended."""
        sender = FileSender(io.BytesIO(content))
        outcome = Outcome(sender.done)
        call = Call(lambda: sender, lambda: Answering(answer, **options))
        call.pair.pump()
        advance(call.clock, 60)
        return outcome

    def test_right(self) -> None:
        """The receipt that says what was sent is taken."""
        receipt = receipt_of(b"abc")
        assert self.answered(receipt.encode()).value == receipt

    @pytest.mark.parametrize(
        ("answer", "cause"),
        [
            (b"", "without a receipt"),
            (b"thank you", "without a receipt"),
            (Receipt(2, "00" * 32).encode(), "has 2 bytes of the 3 that were sent"),
            (Receipt(3, "00" * 32).encode(), "the digests differ"),
            (Receipt(3, "00" * 32).encode() + b"x", "without a receipt"),
            (b"x" * 70_000, "the callee's answer is no receipt"),
        ],
    )
    def test_wrong(self, answer: bytes, cause: str) -> None:
        """Anything else is a failure that says what is wrong."""
        assert cause in why(self.answered(answer))

    def test_ended_too_early(self) -> None:
        """A callee that ends the call before it had everything has not got it."""
        assert "before it had everything" in why(self.answered(b"", CONTENT, ends=True))

    def test_unreadable(self, tmp_path: Path) -> None:
        """A file that can't be read on breaks the call off; the receiver keeps nothing."""

        class Failing(io.BytesIO):
            def read(self, size: int | None = -1, /) -> bytes:
                if self.tell():
                    raise OSError(5, "Input/output error")
                return super().read(size)

        outcome = Transfer(make_receiver(tmp_path), Failing(CONTENT)).run()
        assert "the file can't be read: Input/output error" in why(outcome)
        assert names(tmp_path) == []


class NameTests:
    """Names of files from identifiers."""

    @pytest.mark.parametrize("name", ["Ia", "+81-6-6908-1121", "taro@example.jp", "a" * 64])
    def test_plain(self, name: str) -> None:
        """What is harmless stays as it is, so that a person finds it."""
        assert safe_name(name) == name

    @pytest.mark.parametrize(
        "name",
        ["..", ".", ".hidden", "../../etc/passwd", "a/b", "a\\b", "山田太郎", "a" * 65, "$(x)"],
    )
    def test_others(self, name: str) -> None:
        """What is not is replaced, and told apart by a digest."""
        safe = safe_name(name)
        assert safe != name
        assert safe.endswith("-" + sha256(name.encode()).hexdigest()[:12])

    @settings(max_examples=300, deadline=None)
    @given(st.text(min_size=1, max_size=128), st.text(min_size=1, max_size=128))
    def test_any(self, one: str, other: str) -> None:
        """Any identifier gives a name that is a file in the folder, and another for another."""
        try:
            one, other = identifier(one), identifier(other)
        except ValueError:
            return
        for name in (safe_name(one), safe_name(other)):
            assert name.isascii()
            assert os.path.basename(name) == name
            assert name not in ("", ".", "..")
            assert not name.startswith(".")
            assert len(name) < 100
        assert (one == other) == (safe_name(one) == safe_name(other))


class ReceiptTests:
    """The receipt, as it goes over the channel."""

    def test_to_the_letter(self) -> None:
        """It is a message like any other, and read as it was written."""
        receipt = Receipt(3, "ab" * 32)
        encoded = b"NOTIFY\r\nReceived:3\r\nDigest:" + b"ab" * 32 + b"\r\n\r\n"
        assert receipt.encode() == encoded
        assert read_receipt(encoded) == receipt

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"NOTIFY\r\nReceived:3\r\n\r\n",
            b"REQUEST\r\nReceived:3\r\nDigest:" + b"ab" * 32 + b"\r\n\r\n",
            b"NOTIFY\r\nReceived:3\r\nDigest:" + b"ab" * 32 + b"\r\n",
            b"NOTIFY\r\nReceived:x\r\nDigest:" + b"ab" * 32 + b"\r\n\r\n",
            b"\xff\xfe\r\n\r\n",
        ],
    )
    def test_none(self, data: bytes) -> None:
        """What is no receipt is none."""
        assert read_receipt(data) is None

    def test_interface(self, tmp_path: Path) -> None:
        """The receiver is an application's call handler like any other."""
        assert verifyObject(ICallHandler, make_receiver(tmp_path))
