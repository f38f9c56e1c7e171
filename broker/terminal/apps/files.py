"""Files over a call: one side sends bytes to their end, the other stores them and confirms.

Once the sender's data has ended, the receiver makes the file durable, and only then answers over
the channel with a receipt, and ends its own data. A call that ends in any other way leaves no file:
half a file is useless, and could be mistaken for a whole one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime
from hashlib import sha256
from typing import Any, BinaryIO, Final
from typing import Protocol as Interface

from twisted.internet.defer import Deferred, execute
from twisted.internet.interfaces import IHalfCloseableProtocol, IProtocol, IPullProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from broker.files import move_file
from broker.interfaces import ICallHandler
from broker.messages.message import printable
from broker.terminal.apps.receipt import Receipt, Tally, TransferFailed, read_receipt

#: Bytes read from a file, and written to the channel, at a time.
CHUNK: Final = 64 * 1024
#: Bytes that one received file may have, by default.
FILE_BYTES: Final = 1 << 30
#: Files received at a time.
FILES_AT_ONCE: Final = 16
#: The end of a file's name until it is whole.
PART: Final = ".part"
#: The cause that a caller is sent where its file can't be stored; the reason stays in our log.
NOT_STORED: Final = "the receiver can't store it"

_SAFE: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._+-@")

#: Runs a function that may take long; in a thread, where there are threads.
InThread = Callable[[Callable[[], None]], Deferred[None]]


# Receiving.


def safe_name(identifier: str) -> str:
    """An identifier as a part of a file name, on any file system; its digest keeps it unique."""
    safe = "".join(letter if letter in _SAFE else "_" for letter in identifier)[:64]
    if safe == identifier and not safe.startswith("."):
        return safe
    return f"{safe.lstrip('.') or '_'}-{sha256(identifier.encode('utf-8')).hexdigest()[:12]}"


@implementer(ICallHandler)
class FileReceiver:
    """Stores the bytes of each call in a new file.

    A file is named after the time and the caller, ``20260704T120000Z-Ia``; nothing in a caller's
    identifier can name another folder. Its name ends with ``.part`` until it is whole.

    :ivar most_bytes: what one file may have
    """

    log = Logger()

    def __init__(
        self,
        directory: str,
        most_bytes: int = FILE_BYTES,
        *,
        now: Callable[[], datetime],
        in_thread: InThread = execute,
        most_files: int = FILES_AT_ONCE,
    ) -> None:
        """
        :param directory: an existing one
        :param now: the time of day, for the names of files
        :param in_thread: runs what waits for the disk once a file is whole
        :param most_files: how many may be received at a time; one more call is not taken
        """
        self.most_bytes = most_bytes
        self._directory = directory
        self._now = now
        self._in_thread = in_thread
        self._most_files = most_files
        self._open: set[ReceivedFile] = set()

    def call(self, caller: str, session: str) -> IProtocol | None:
        """Take a call, unless too many files are being received."""
        if len(self._open) >= self._most_files:
            self.log.warn(
                "Refused a call from {caller}: {files} files are being received",
                caller=printable(caller),
                files=len(self._open),
            )
            return None
        try:
            path, file = self._new_file(caller)
        except OSError as error:
            self.log.warn("Cannot make a file for a call: {error}", error=str(error))
            return None
        received = ReceivedFile(file, path, caller, self)
        self._open.add(received)
        return received

    def finish(self, file: ReceivedFile, keep: Callable[[], None]) -> Deferred[None]:
        """Make a whole file durable; fails with an ``OSError``.

        :param keep: does it, and waits for the disk
        """
        return self._in_thread(keep)

    def done(self, file: ReceivedFile) -> None:
        """A file is whole, or gone: it does not count from now on."""
        self._open.discard(file)

    def _new_file(self, caller: str) -> tuple[str, BinaryIO]:
        """A new ``.part`` file whose final name is free too; the path is the final one."""
        stem = os.path.join(self._directory, f"{self._now():%Y%m%dT%H%M%SZ}-{safe_name(caller)}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        path = stem
        for count in range(2, 10_000):
            if not os.path.lexists(path):
                try:
                    return path, os.fdopen(os.open(path + PART, flags, 0o600), "wb", buffering=0)
                except FileExistsError:
                    pass
            path = f"{stem}-{count}"
        raise FileExistsError(f"{stem}: too many files of this name")


@implementer(IHalfCloseableProtocol)
class ReceivedFile(Protocol):
    """One call's bytes on their way into a file."""

    log = Logger()

    def __init__(self, file: BinaryIO, path: str, caller: str, receiver: FileReceiver) -> None:
        """
        :param file: the open ``.part`` file, unbuffered
        :param path: its name once it is whole
        """
        self._file = file
        self._path = path
        self._caller = printable(caller)
        self._receiver = receiver
        self._tally = Tally()
        self._writing = True

    def dataReceived(self, data: bytes) -> None:
        """The next bytes of the file."""
        if not self._writing:
            return
        most = self._receiver.most_bytes
        if self._tally.octets + len(data) > most:
            self._give_up(f"a file here has at most {most} bytes")
            return
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._give_up(NOT_STORED, str(error))
            return
        self._tally.add(data)

    def readConnectionLost(self) -> None:
        """The file is whole: make it durable, then confirm it."""
        if self._writing:
            self._writing = False
            keeping = self._receiver.finish(self, self._keep)
            keeping.addCallbacks(lambda _: self._confirm(), self._not_kept)

    def writeConnectionLost(self) -> None:
        """Required by the interface."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The call is over; a file that is not whole now never will be."""
        if self._writing:
            self._discard()
            self.log.warn(
                "Dropped a file from {caller} after {octets} bytes: {why}",
                caller=self._caller,
                octets=self._tally.octets,
                why=printable(str(reason.value)),
            )

    def _keep(self) -> None:
        self._file.close()
        move_file(self._path + PART, self._path)

    def _confirm(self) -> None:
        self._receiver.done(self)
        receipt = self._tally.receipt
        self.log.info(
            "Received {path} from {caller}: {octets} bytes, SHA-256 {digest}",
            path=self._path,
            caller=self._caller,
            octets=receipt.octets,
            digest=receipt.digest,
        )
        channel: Any = self.transport
        channel.write(receipt.encode())
        channel.loseWriteConnection()

    def _not_kept(self, failure: Failure) -> None:
        failure.trap(OSError)
        self._give_up(NOT_STORED, str(failure.value))

    def _give_up(self, cause: str, detail: str = "") -> None:
        """Break the call off.

        :param cause: what the caller is sent
        :param detail: what our log says in its place
        """
        self._discard()
        self.log.warn(
            "Refused a file from {caller}: {why}", caller=self._caller, why=detail or cause
        )
        channel: Any = self.transport
        channel.abortConnection(cause)

    def _discard(self) -> None:
        self._writing = False
        self._receiver.done(self)
        self._file.close()
        try:
            os.unlink(self._path + PART)
        except FileNotFoundError:
            pass  # another program has removed it
        except OSError as error:
            self.log.warn("An incomplete file is left behind: {error}", error=str(error))


# Sending.


class TransferProgress(Interface):
    """What shows how far a transfer is."""

    def at(self, octets: int) -> object:
        """This number of bytes is sent."""


@implementer(IHalfCloseableProtocol, IPullProducer)
class FileSender(Protocol):
    """Sends a file over a call, and waits for the receipt.

    :ivar done: fires when the call is over, with the receipt, if the callee has confirmed that it
        has everything; else it fails with ``TransferFailed``. Cancel to break the call off
    """

    def __init__(self, file: BinaryIO, *, progress: TransferProgress | None = None) -> None:
        """
        :param file: read in small pieces, as fast as the callee takes them
        :param progress: shows how many bytes are sent, after each piece
        """
        self.done: Deferred[Receipt] = Deferred(lambda _: self._fail("the caller gave up"))
        self._file = file
        self._progress = progress
        self._tally = Tally()
        self._sending = True
        self._answer = b""
        self._result: Receipt | TransferFailed | None = None

    def connectionMade(self) -> None:
        """The channel is open."""
        channel: Any = self.transport
        channel.registerProducer(self, False)

    def resumeProducing(self) -> None:
        """The channel takes more."""
        if not self._sending:
            return
        channel: Any = self.transport
        try:
            data = self._file.read(CHUNK)
        except OSError as error:
            self._fail(f"the file can't be read: {error.strerror}")
            return
        if data:
            self._tally.add(data)
            channel.write(data)
            if self._progress is not None:
                self._progress.at(self._tally.octets)
        else:
            self._sending = False
            channel.unregisterProducer()
            channel.loseWriteConnection()

    def stopProducing(self) -> None:
        """The channel is gone; ``connectionLost`` follows."""
        self._sending = False

    def dataReceived(self, data: bytes) -> None:
        """A part of the receipt."""
        self._answer += data
        if len(self._answer) > CHUNK:
            self._fail("the callee's answer is no receipt")

    def readConnectionLost(self) -> None:
        """The callee has ended its data."""
        if self._sending:
            self._fail("the callee ended the call before it had everything")
            return
        try:
            self._settle(self._tally.confirm(read_receipt(self._answer)))
        except TransferFailed as error:
            self._settle(error)

    def writeConnectionLost(self) -> None:
        """Required by the interface."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The call is over."""
        self._sending = False
        self._settle(TransferFailed(str(reason.value)))
        if self.done.called:  # cancelled
            return
        if isinstance(self._result, Receipt):
            self.done.callback(self._result)
        else:
            self.done.errback(self._result)

    def _fail(self, why: str) -> None:
        self._sending = False
        self._settle(TransferFailed(why))
        if self.transport is not None:
            channel: Any = self.transport
            channel.abortConnection(why)

    def _settle(self, result: Receipt | TransferFailed) -> None:
        """The first result counts."""
        if self._result is None:
            self._result = result
