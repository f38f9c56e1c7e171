"""A call between two streams."""

from __future__ import annotations

import random
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol, IProtocol
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from zope.interface import implementer

from broker.terminal.apps.pipe import Pipe
from broker.terminal.apps.receipt import Receipt, Tally, TransferFailed
from tests.support.clock import settle
from tests.support.reactor import FakeReactor
from tests.support.transport import FakeTransport
from tests.terminal.speakers import Call

CONTENT = random.Random(2).randbytes(400_000)


def receipt_for(data: bytes) -> Receipt:
    """The right receipt."""
    tally = Tally()
    tally.add(data)
    return tally.receipt


@implementer(IHalfCloseableProtocol)
class Callee(Protocol):
    """A callee that does what a test says."""

    def __init__(self) -> None:
        self.data = b""
        self.ends = 0
        self.lost: Failure | None = None

    @property
    def channel(self) -> Any:
        """Its side of the call."""
        return self.transport

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def readConnectionLost(self) -> None:
        self.ends += 1

    def writeConnectionLost(self) -> None:
        pass

    def connectionLost(self, reason: Failure | None = None) -> None:
        self.lost = reason


class Piped:
    """A call, the streams of its caller, and its callee."""

    def __init__(self, *, output_is_read: bool = True) -> None:
        self.clock = FakeReactor()
        self.callee = Callee()
        self.streams: FakeTransport
        self.results: list[Receipt | str] = []

        self._output_is_read = output_is_read
        self.pipe = Pipe(self)
        done: Deferred[Receipt] = self.pipe.done
        done.addCallbacks(self._fired, self._failed)
        self.pair = Call(lambda: self.pipe, lambda: self.callee, clock=self.clock).pair
        self.pump()

    def open(self, ends: IProtocol) -> FakeTransport:
        """Open the streams."""
        self.streams = FakeTransport(ends, self.clock, peer_reads=self._output_is_read)
        self.streams.start()
        return self.streams

    def _fired(self, receipt: Receipt) -> None:
        self.results.append(receipt)

    def _failed(self, failure: Failure) -> None:
        assert failure.check(TransferFailed), failure
        self.results.append(str(failure.value))

    def pump(self) -> None:
        """Let everything come to rest, what is only resumed in a later turn included."""
        moved = None
        while moved != self.pair.moved:
            moved = list(self.pair.moved)
            settle(self.clock)
            self.pair.pump()

    def type(self, data: bytes) -> None:
        """Something is read from the input."""
        self.streams.receive(data)
        self.pump()

    def end_input(self) -> None:
        """The input ends."""
        self.streams.end_input()
        self.pump()

    def say(self, data: bytes) -> None:
        """The callee says something."""
        self.callee.channel.write(data)
        self.pump()

    def hang_up(self) -> None:
        """The callee ends its data."""
        self.callee.channel.loseWriteConnection()
        self.pump()

    @property
    def result(self) -> Receipt | str:
        """What became of the call."""
        (result,) = self.results
        return result

    @property
    def output(self) -> bytes:
        """What was written so far."""
        return bytes(self.streams.sent)


class PipeTests:
    """What is read arrives, what is said is written, and the receipt decides."""

    def test_both_ways(self) -> None:
        """Data goes both ways at once, and the receipt is taken, not written."""
        piped = Piped()
        piped.type(b"question ")
        assert piped.callee.data == b"question "
        piped.say(b"answer")
        assert piped.output == b"answer"
        piped.type(b"more")
        piped.end_input()
        assert piped.callee.ends == 1
        piped.say(receipt_for(b"question more").encode())
        assert piped.results == []  # the callee has not ended its data
        piped.hang_up()
        assert piped.result == receipt_for(b"question more")
        assert piped.output == b"answer"

    def test_nothing_at_all(self) -> None:
        """An empty input is a call like any other."""
        piped = Piped()
        piped.end_input()
        piped.say(receipt_for(b"").encode())
        piped.hang_up()
        assert piped.result == receipt_for(b"")

    @pytest.mark.parametrize("size", [1, 7, 1000])
    def test_receipt_behind_an_answer(self, size: int) -> None:
        """The receipt is found behind what else the callee says, in whatever pieces it comes."""
        piped = Piped()
        piped.end_input()
        answer = b"N NOTIFY\r\nNOTIFY\r\nReceived:12\r\n the end" * 10
        data = answer + receipt_for(b"").encode()
        for start in range(0, len(data), size):
            piped.say(data[start : start + size])
        piped.hang_up()
        assert piped.result == receipt_for(b"")
        assert piped.output == answer

    def test_answers_are_not_held_back(self) -> None:
        """What can't become a receipt is written at once."""
        piped = Piped()
        piped.end_input()
        piped.say(b"prompt> ")
        assert piped.output == b"prompt> "

    def test_no_receipt(self) -> None:
        """A callee that doesn't say what it has fails the call; all it said is written."""
        piped = Piped()
        piped.type(b"x")
        piped.end_input()
        piped.say(b"thanks\nNOTIFY\r\nRec")
        piped.hang_up()
        assert piped.result == "the callee ended the call without a receipt"
        assert piped.output == b"thanks\nNOTIFY\r\nRec"

    def test_wrong_receipt(self) -> None:
        """A receipt for something else fails the call."""
        piped = Piped()
        piped.type(b"abc")
        piped.end_input()
        piped.say(receipt_for(b"ab").encode())
        piped.hang_up()
        assert piped.result == "the callee has 2 bytes of the 3 that were sent"

    def test_callee_ends_first(self) -> None:
        """A callee that ends before the input did has not got everything."""
        piped = Piped()
        piped.type(b"abc")
        piped.say(b"bye")
        piped.hang_up()
        assert piped.result == "the callee ended the call before the input did"
        assert piped.output == b"bye"

    def test_broken(self) -> None:
        """A connection that breaks fails the call (I21)."""
        piped = Piped()
        piped.type(b"abc")
        piped.end_input()
        piped.pair.cut()
        assert isinstance(piped.result, str)
        assert "the connection ended before the data did" in piped.result

    def test_output_closed(self) -> None:
        """When nobody reads the output any more, the call is broken off."""
        piped = Piped()
        piped.streams.protocol.writeConnectionLost()  # type: ignore[attr-defined]
        piped.pump()
        assert piped.result == "the caller's output is closed"
        assert piped.callee.lost is not None

    def test_cancelled(self) -> None:
        """A caller who gives up tells the callee."""
        piped = Piped()
        piped.pipe.done.addErrback(lambda failure: None)
        piped.pipe.done.cancel()
        piped.pump()
        assert piped.callee.lost is not None
        assert "the caller gave up" in str(piped.callee.lost.value)


class FlowTests:
    """Neither side is made to hold what the other can't take."""

    def test_a_slow_callee_holds_up_the_input(self) -> None:
        """While the callee doesn't read, no more of the input is read than a little."""
        piped = Piped()
        piped.callee.channel.pauseProducing()
        piped.streams.receive(CONTENT)
        settle(piped.clock)
        assert piped.streams.waiting > 0
        piped.callee.channel.resumeProducing()
        piped.pump()
        assert piped.callee.data == CONTENT

    def test_a_slow_output_holds_up_the_callee(self) -> None:
        """While nobody reads the output, the callee is held up in its turn."""
        piped = Piped(output_is_read=False)
        piped.callee.channel.write(CONTENT)
        piped.pump()
        assert len(piped.streams.unread) < len(CONTENT)
        piped.streams.resume_reading_peer()
        piped.pump()
        assert piped.output == CONTENT

    def test_done_when_all_is_written(self) -> None:
        """The call is not over before all that the callee said is written."""
        piped = Piped(output_is_read=False)
        piped.end_input()
        piped.say(b"last words")
        piped.say(receipt_for(b"").encode())
        piped.hang_up()
        assert piped.results == []
        piped.streams.resume_reading_peer()
        piped.pump()
        assert piped.result == receipt_for(b"")
        assert piped.output == b"last words"
