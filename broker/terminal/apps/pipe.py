"""A call between two streams, such as a process's standard input and output.

What is read goes to the callee, what the callee sends is written, both as fast as the slower side
allows. When the input ends, so does our data; the callee then confirms what it has with a receipt
(see ``receipt``), which is compared and not written.
"""

from __future__ import annotations

from typing import Any, Final
from typing import Protocol as Interface

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol, IProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from broker.terminal.apps.receipt import Receipt, Tally, TransferFailed, read_receipt

#: How a receipt begins, and how long it may be.
_HEAD: Final = b"NOTIFY\r\nReceived:"
_RECEIPT_BYTES: Final = 160


class Streams(Interface):
    """An input and an output, such as a process's own."""

    def open(self, ends: IProtocol) -> Any:
        """Open them; call it once.

        :param ends: is given the input, and told when either side ends
        :return: the transport that writes the output, such as Twisted's ``StandardIO``
        """


@implementer(IHalfCloseableProtocol)
class Pipe(Protocol):
    """One call that speaks through two streams.

    :ivar done: fires when the call is over and all that the callee sent is written, with the
        receipt, if the callee has confirmed that it has everything; else it fails with
        ``TransferFailed``. Cancel to break the call off
    """

    def __init__(self, streams: Streams) -> None:
        """
        :param streams: opened once the call is
        """
        self.done: Deferred[Receipt] = Deferred(lambda _: self._fail("the caller gave up"))
        self._source = streams
        self._streams: Any = None  # once they are open
        self._tally = Tally()
        self._input_ended = False
        self._held_back = b""  # what may become a receipt
        self._result: Receipt | TransferFailed | None = None
        self._call_ended = False

    # From the callee.

    def connectionMade(self) -> None:
        """The call is open: begin to read."""
        channel: Any = self.transport
        self._streams = self._source.open(_Ends(self))
        channel.registerProducer(self._streams, True)
        self._streams.registerProducer(channel, True)

    def dataReceived(self, data: bytes) -> None:
        """The callee sends something."""
        if self._input_ended:
            data, self._held_back = _split(self._held_back + data)
        if data and self._streams is not None:
            self._streams.write(data)

    def readConnectionLost(self) -> None:
        """The callee has ended its data."""
        start = self._held_back.rfind(_HEAD)
        receipt = read_receipt(self._held_back[start:]) if start >= 0 else None
        rest = self._held_back if receipt is None else self._held_back[:start]
        if rest and self._streams is not None:
            self._streams.write(rest)
        if not self._input_ended:
            self._settle(TransferFailed("the callee ended the call before the input did"))
            channel: Any = self.transport
            channel.unregisterProducer()
            channel.loseConnection()
            return
        try:
            self._settle(self._tally.confirm(receipt))
        except TransferFailed as error:
            self._settle(error)

    def writeConnectionLost(self) -> None:
        """Required by the interface."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The call is over."""
        self._call_ended = True
        self._settle(TransferFailed(str(reason.value)))
        self._report()

    # From the streams.

    def input_read(self, data: bytes) -> None:
        """Bytes were read."""
        channel: Any = self.transport
        self._tally.add(data)
        channel.write(data)

    def input_ended(self) -> None:
        """The input has ended."""
        if not self._input_ended and self._result is None:
            self._input_ended = True
            channel: Any = self.transport
            channel.unregisterProducer()
            channel.loseWriteConnection()

    def output_lost(self) -> None:
        """What reads our output has closed it."""
        if self._result is None:
            self._fail("the caller's output is closed")

    def streams_lost(self) -> None:
        """All is written that could be."""
        self._streams = None
        self.output_lost()
        self._report()

    # The outcome.

    def _settle(self, result: Receipt | TransferFailed) -> None:
        """The outcome, reported once all is written; the first one counts."""
        if self._result is None:
            self._result = result
            if self._streams is not None:
                self._streams.unregisterProducer()
                self._streams.loseConnection()

    def _fail(self, why: str) -> None:
        self._settle(TransferFailed(why))
        if self.transport is not None:
            channel: Any = self.transport
            channel.abortConnection(why)

    def _report(self) -> None:
        if self.done.called or not self._call_ended or self._streams is not None:
            return
        if isinstance(self._result, Receipt):
            self.done.callback(self._result)
        else:
            self.done.errback(self._result)


@implementer(IHalfCloseableProtocol)
class _Ends(Protocol):
    """The streams' side of a pipe."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    def dataReceived(self, data: bytes) -> None:
        self._pipe.input_read(data)

    def readConnectionLost(self) -> None:
        self._pipe.input_ended()

    def writeConnectionLost(self) -> None:
        self._pipe.output_lost()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._pipe.streams_lost()


def _split(data: bytes) -> tuple[bytes, bytes]:
    """Split off the end that may be a receipt, or the beginning of one."""
    for start in range(max(0, len(data) - _RECEIPT_BYTES), len(data)):
        rest = data[start : start + len(_HEAD)]
        if _HEAD.startswith(rest):
            return data[:start], data[start:]
    return data, b""
