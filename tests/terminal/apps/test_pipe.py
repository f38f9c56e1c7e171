"""A call between two streams."""

from __future__ import annotations

import random

import pytest
from twisted.internet.interfaces import IProtocol

from broker.terminal.apps.pipe import Pipe
from broker.terminal.apps.receipt import Receipt, TransferFailed
from tests.support.clock import settle
from tests.support.reactor import FakeReactor
from tests.support.transport import FakeTransport
from tests.terminal.apps.test_files import receipt_of
from tests.terminal.network import Outcome
from tests.terminal.speakers import Call, HalfCloseable

CONTENT = random.Random(2).randbytes(400_000)
ANSWER = b"N NOTIFY\r\nNOTIFY\r\nReceived:12\r\n the end" * 10


class Piped:
    """A call, the streams of its caller, and its callee."""

    streams: FakeTransport

    def __init__(self, *, output_is_read: bool = True) -> None:
        self.callee = HalfCloseable()
        self._output_is_read = output_is_read
        self.pipe = Pipe(self)
        self.outcome = Outcome(self.pipe.done)
        self.clock = FakeReactor()
        self.pair = Call(lambda: self.pipe, lambda: self.callee, clock=self.clock).pair
        self.pump()

    def open(self, ends: IProtocol) -> FakeTransport:
        """Open the streams."""
        self.streams = FakeTransport(ends, self.clock, peer_reads=self._output_is_read)
        self.streams.start()
        return self.streams

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
        self.callee.transport.write(data)
        self.pump()

    def hang_up(self) -> None:
        """The callee ends its data."""
        self.callee.transport.loseWriteConnection()
        self.pump()

    @property
    def result(self) -> Receipt | str:
        """What became of the call: the receipt, or why it failed."""
        assert self.outcome.done
        if self.outcome.error is None:
            return Receipt(*self.outcome.value)
        assert isinstance(self.outcome.error, TransferFailed)
        return str(self.outcome.error)

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
        assert piped.callee.received == b"question "
        piped.say(b"answer")
        assert piped.output == b"answer"
        piped.type(b"more")
        piped.end_input()
        assert piped.callee.ends == 1
        piped.say(receipt_of(b"question more").encode())
        assert not piped.outcome.done  # the callee has not ended its data
        piped.hang_up()
        assert piped.result == receipt_of(b"question more")
        assert piped.output == b"answer"

    @pytest.mark.parametrize(
        ("typed", "said", "result"),
        [
            pytest.param(b"", b"", b"", id="an empty input is a call like any other"),
            pytest.param(b"", ANSWER, b"", id="the receipt is found behind what else is said"),
            pytest.param(
                b"x",
                b"thanks\nNOTIFY\r\nRec",
                "the callee ended the call without a receipt",
                id="all that was said is written, and no receipt is a failure",
            ),
            pytest.param(
                b"abc",
                receipt_of(b"ab").encode(),
                "the callee has 2 bytes of the 3 that were sent",
                id="a receipt for something else",
            ),
        ],
    )
    @pytest.mark.parametrize("size", [1, 7, 1000])
    def test_result(self, typed: bytes, said: bytes, result: bytes | str, size: int) -> None:
        """The receipt decides, in whatever pieces it comes."""
        piped = Piped()
        if typed:
            piped.type(typed)
        piped.end_input()
        data = said + (receipt_of(result).encode() if isinstance(result, bytes) else b"")
        for start in range(0, len(data), size):
            piped.say(data[start : start + size])
        piped.hang_up()
        assert piped.result == (receipt_of(result) if isinstance(result, bytes) else result)
        assert piped.output == (b"" if said.startswith(b"NOTIFY") else said)

    def test_answers_are_not_held_back(self) -> None:
        """What can't become a receipt is written at once."""
        piped = Piped()
        piped.end_input()
        piped.say(b"prompt> ")
        assert piped.output == b"prompt> "

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
        """When the output is closed, the call is broken off."""
        piped = Piped()
        piped.streams.protocol.writeConnectionLost()  # type: ignore[attr-defined]
        piped.pump()
        assert piped.result == "the caller's output is closed"
        assert piped.callee.lost

    def test_cancelled(self) -> None:
        """A caller who gives up tells the callee."""
        piped = Piped()
        piped.pipe.done.cancel()
        piped.pump()
        assert "the caller gave up" in str(piped.callee.why)


class FlowTests:
    """Neither side is made to hold what the other can't take."""

    def test_a_slow_callee_holds_up_the_input(self) -> None:
        """While the callee doesn't read, only a little of the input is read."""
        piped = Piped()
        piped.callee.transport.pauseProducing()
        piped.streams.receive(CONTENT)
        settle(piped.clock)
        assert piped.streams.waiting > 0
        piped.callee.transport.resumeProducing()
        piped.pump()
        assert piped.callee.received == CONTENT

    def test_a_slow_output_holds_up_the_callee(self) -> None:
        """While the output is not read, the callee is held up in its turn."""
        piped = Piped(output_is_read=False)
        piped.callee.transport.write(CONTENT)
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
        piped.say(receipt_of(b"").encode())
        piped.hang_up()
        assert not piped.outcome.done
        piped.streams.resume_reading_peer()
        piped.pump()
        assert piped.result == receipt_of(b"")
        assert piped.output == b"last words"
