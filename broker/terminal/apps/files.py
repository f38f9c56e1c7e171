"""Files over a call: one side sends bytes to their end, the other keeps them and says so.

Once the sender's data has ended, the receiver makes the file durable, and only then answers over
the channel with a receipt, ``NOTIFY`` / ``Received`` / ``Digest``, and ends its own data. A call
that ends in any other way leaves no file: half a file would be of no use, and would be taken for a
whole one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime
from hashlib import sha256
from typing import Any, BinaryIO, Final, NamedTuple

from twisted.internet.defer import Deferred, execute
from twisted.internet.interfaces import IHalfCloseableProtocol, IProtocol, IPullProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from broker.files import move_file
from broker.interfaces import ICallHandler
from broker.messages.framing import Decoder
from broker.messages.grammar import NOTIFY
from broker.messages.message import Message, printable

#: Bytes read from a file, and written to the channel, at a time.
CHUNK: Final = 64 * 1024
#: Bytes that one received file may have, where nothing else is said.
FILE_BYTES: Final = 1 << 30
#: Files received at a time.
FILES_AT_ONCE: Final = 16
#: What a file is called until it is whole.
PART: Final = ".part"

_SAFE: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._+-@")

#: Runs a function that may take long; in a thread, where there are threads.
InThread = Callable[[Callable[[], None]], Deferred[None]]


class TransferFailed(Exception):
    """What was sent did not arrive whole, as far as the callee has said; the text says why."""


class Receipt(NamedTuple):
    """What a receiver says that it has.

    :ivar octets: how many bytes
    :ivar digest: their SHA-256 in hexadecimal
    """

    octets: int
    digest: str

    def encode(self) -> bytes:
        """The receipt as it goes over the channel."""
        return Message(NOTIFY, Received=self.octets, Digest=self.digest).encode()


def read_receipt(data: bytes) -> Receipt | None:
    """The receipt that bytes are, from the first to the last; ``None``, if they are none."""
    decoder = Decoder()
    decoder.feed(data)
    message = decoder.next_event()
    if not isinstance(message, Message) or decoder.pending or message.verb != NOTIFY:
        return None
    if "Received" not in message.fields or "Digest" not in message.fields:
        return None
    return Receipt(int(message.fields["Received"]), message.fields["Digest"])


class Tally:
    """Counts bytes and works out their digest."""

    def __init__(self) -> None:
        self.octets = 0
        self._hash = sha256()

    def add(self, data: bytes) -> None:
        """Take in the bytes that come next."""
        self.octets += len(data)
        self._hash.update(data)

    @property
    def receipt(self) -> Receipt:
        """The receipt for what was taken in so far."""
        return Receipt(self.octets, self._hash.hexdigest())

    def confirm(self, receipt: Receipt | None) -> Receipt:
        """Compare what was sent with what the other side says that it has.

        :raises TransferFailed: they differ, or it didn't say
        """
        if receipt is None:
            raise TransferFailed("the callee ended the call without saying what it has received")
        if receipt.octets != self.octets:
            raise TransferFailed(
                f"the callee has {receipt.octets} bytes of the {self.octets} that were sent"
            )
        if receipt != self.receipt:
            raise TransferFailed("what the callee has is not what was sent: the digests differ")
        return receipt


# Receiving.


def safe_name(identifier: str) -> str:
    """An identifier as a part of a file name, on any file system; its digest keeps it unique."""
    safe = "".join(one if one in _SAFE else "_" for one in identifier)[:64]
    if safe == identifier and not safe.startswith("."):
        return safe
    return f"{safe.lstrip('.') or '_'}-{sha256(identifier.encode('utf-8')).hexdigest()[:12]}"


@implementer(ICallHandler)
class FileReceiver:
    """Keeps the bytes of each call in a new file.

    A file is named after the time and the caller, ``20260704T120000Z-Ia``; nothing of a caller's
    identifier can name another folder. It is called ``….part`` until it is whole.
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
        :param most_bytes: what one file may have
        :param now: the time of day, for the names of files
        :param in_thread: runs what waits for the disk once a file is whole
        :param most_files: how many may be received at a time; one call more is not taken
        """
        self._directory = directory
        self._most_bytes = most_bytes
        self._now = now
        self._in_thread = in_thread
        self._most_files = most_files
        self._open: set[ReceivedFile] = set()

    def call(self, caller: str, session: str) -> IProtocol | None:
        """Take a call, unless too many files are being received."""
        if len(self._open) >= self._most_files:
            self.log.warn(
                "A call of {caller} is not taken: {files} files are being received",
                caller=printable(caller),
                files=len(self._open),
            )
            return None
        try:
            path, file = self._new_file(caller)
        except OSError as error:
            self.log.warn("No file can be made for a call: {error}", error=str(error))
            return None
        received = ReceivedFile(
            file, path, caller, self._most_bytes, self._in_thread, self._open.discard
        )
        self._open.add(received)
        return received

    def _new_file(self, caller: str) -> tuple[str, BinaryIO]:
        """A new ``.part`` file, whose whole name is free too; the path is the whole one."""
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

    def __init__(
        self,
        file: BinaryIO,
        path: str,
        caller: str,
        most_bytes: int,
        in_thread: InThread,
        over: Callable[[ReceivedFile], object],
    ) -> None:
        """
        :param file: the open ``.part`` file, unbuffered
        :param path: what it is called once it is whole
        :param over: told when the file is whole, or gone
        """
        self._file = file
        self._path = path
        self._caller = printable(caller)
        self._most_bytes = most_bytes
        self._in_thread = in_thread
        self._over = over
        self._tally = Tally()
        self._writing = True

    def dataReceived(self, data: bytes) -> None:
        """The next bytes of the file."""
        if not self._writing:
            return
        if self._tally.octets + len(data) > self._most_bytes:
            self._give_up(f"a file here has at most {self._most_bytes} bytes")
            return
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._give_up("the receiver can't store it", str(error))
            return
        self._tally.add(data)

    def readConnectionLost(self) -> None:
        """The file is whole: make it durable, then say so."""
        if self._writing:
            self._writing = False
            keeping = self._in_thread(self._keep)
            keeping.addCallbacks(lambda _: self._answer(), self._not_kept)

    def writeConnectionLost(self) -> None:
        """Required by the interface."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The call is over; a file that is not whole by now never will be."""
        if self._writing:
            self._discard()
            self.log.warn(
                "A file of {caller} is thrown away after {octets} bytes: {why}",
                caller=self._caller,
                octets=self._tally.octets,
                why=printable(str(reason.value)),
            )

    def _keep(self) -> None:
        self._file.close()
        move_file(self._path + PART, self._path)

    def _answer(self) -> None:
        self._over(self)
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
        self._give_up("the receiver can't store it", str(failure.value))

    def _give_up(self, cause: str, ours: str = "") -> None:
        """Break the call off.

        :param cause: what the caller is told
        :param ours: what only we are
        """
        self._discard()
        self.log.warn(
            "A file of {caller} is not taken: {why}", caller=self._caller, why=ours or cause
        )
        channel: Any = self.transport
        channel.abortConnection(cause)

    def _discard(self) -> None:
        self._writing = False
        self._over(self)
        self._file.close()
        try:
            os.unlink(self._path + PART)
        except FileNotFoundError:
            pass  # somebody has tidied up before us
        except OSError as error:
            self.log.warn("A file is left over: {error}", error=str(error))


# Sending.


@implementer(IHalfCloseableProtocol, IPullProducer)
class FileSender(Protocol):
    """Sends a file over a call, and waits for the receipt.

    :ivar done: fires when the call is over: with the receipt, where the callee has everything and
        has said so; else it fails with ``TransferFailed``. Cancel to break the call off.
    """

    def __init__(
        self, file: BinaryIO, *, progress: Callable[[int], object] = lambda octets: None
    ) -> None:
        """
        :param file: read in small pieces, as fast as the callee takes them
        :param progress: told, after each piece, how many bytes have gone so far
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
            self._progress(self._tally.octets)
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
        """The callee has said all that it says."""
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
        """What comes first counts."""
        if self._result is None:
            self._result = result
