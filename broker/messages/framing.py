"""Bytes in, events out: the framing of the protocol, with no transport and no clock.

``feed`` only stores; ``next_event`` returns one event, or ``None`` where more bytes are needed. The
events are the same whether the bytes come one by one or in one piece; only the parts of a body
follow the pieces.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from broker.messages.message import Malformed, Message, is_notify, parse


@dataclass(frozen=True, slots=True)
class Limits:
    """What one peer may send, and leave unread; in bytes where no other unit is named.

    :ivar line: one line without its end
    :ivar head: all lines of one message with their ends
    :ivar lines: how many lines a head may have
    :ivar body: one body
    :ivar output: what may wait to be read by the peer
    :ivar stalled: seconds for which the peer may read nothing once much is waiting
    :ivar outstanding: requests without their last reply; reading stops at this number
    """

    line: int = 1024
    head: int = 64 * 1024
    lines: int = 256
    body: int = 16 * 1024 * 1024
    output: int = 256 * 1024
    stalled: float = 10.0
    outstanding: int = 64

    def __post_init__(self) -> None:
        if self.line > self.head:
            raise ValueError("a line can't be longer than all lines together")


#: Before login.
UNAUTHENTICATED: Final = Limits(
    head=8 * 1024, lines=64, body=0, output=4 * 1024, stalled=5.0, outstanding=4
)
#: After login.
AUTHENTICATED: Final = Limits()


class Signal(Enum):
    """Events that carry nothing."""

    KEEPALIVE = "two empty lines"


@dataclass(frozen=True, slots=True)
class Body:
    """A part of the body of the last message.

    :ivar data: the bytes
    :ivar last: the body ends with them
    """

    data: bytes
    last: bool


Event = Message | Body | Malformed | Signal


class Decoder:
    """Turns one peer's bytes into events.

    :ivar limits: what is allowed from here on; may be replaced between events
    """

    __slots__ = ("_blank", "_body", "_buffer", "_dead", "_line", "_lines", "_start", "limits")

    def __init__(self, limits: Limits = AUTHENTICATED) -> None:
        self.limits = limits
        self._buffer = b""
        self._start = 0  # bytes before it are consumed
        self._line = 0  # offset from _start of the line that was incomplete
        self._lines = 0  # lines before that one
        self._body = 0  # bytes still to come of a body
        self._blank = False  # one empty line came: another makes a keepalive
        self._dead = False  # the framing is lost: nothing is decoded from here on

    def feed(self, data: bytes) -> None:
        """Store what arrived."""
        if self._dead:
            return
        if self._start < len(self._buffer):
            data = self._buffer[self._start :] + data
        self._buffer = data
        self._start = 0

    @property
    def pending(self) -> bool:
        """Whether a message is incomplete: if the input ends now, it is truncated."""
        return not self._dead and (self._body > 0 or self._start < len(self._buffer))

    def take_rest(self) -> bytes:
        """Return the bytes not decoded: what follows on this connection is not messages."""
        rest = self._buffer[self._start :]
        self._buffer = b""
        self._start = 0
        self._dead = True
        return rest

    def truncated(self) -> Malformed | None:
        """The error for a message that is incomplete at the end of input, if there is one."""
        if not self.pending:
            return None
        silent = self._body > 0 or is_notify(self.take_rest())
        self._dead = True
        return Malformed(
            "the input ended before the message did: it ends with an empty line",
            fatal=True,
            silent=silent,
        )

    def next_event(self) -> Event | None:
        """The next event, or ``None`` where more bytes are needed for one."""
        if self._body:
            return self._next_of_body()
        buffer = self._buffer
        start = self._start
        if start < len(buffer) and buffer[start] in b"\r\n":
            if self._skip_empty_lines():
                return Signal.KEEPALIVE
            start = self._start
        if start == len(buffer):  # an idle connection keeps no buffer
            self._buffer = b""
            self._start = 0
            return None
        limits = self.limits
        horizon = start + limits.head + 4
        # What was searched before is not searched again: no input costs more than its length.
        fresh = start + self._line - 1 if self._line else start
        # An empty line ends the head: after CRLF or LF, whichever comes first.
        end = buffer.find(b"\n\r\n", fresh, horizon)
        skip = 3
        bare = buffer.find(b"\n\n", fresh, end + 1 if end >= 0 else horizon)
        if bare >= 0:
            end = bare
            skip = 2
        if end < 0:
            if len(buffer) - start <= limits.line:
                return None
            return self._check_limits(len(buffer))
        if end - start >= limits.line or buffer.count(b"\n", start, end) >= limits.lines:
            exceeded = self._check_limits(end + 1)
            if exceeded is not None:
                return exceeded
        self._line = self._lines = 0
        self._start = end + skip
        self._blank = False
        try:
            message = parse(buffer[start:end])
        except Malformed as malformed:
            return self._lose_framing(malformed) if malformed.fatal else malformed
        return self._expect_body(message) if "Length" in message.fields else message

    def _skip_empty_lines(self) -> bool:
        """Skip empty lines between messages, up to the second of two in a row: a keepalive."""
        while True:
            if self._buffer.startswith(b"\r\n", self._start):
                self._start += 2
            elif self._buffer.startswith(b"\n", self._start):
                self._start += 1
            else:
                return False
            self._blank = not self._blank
            if not self._blank:
                return True

    def _expect_body(self, message: Message) -> Message | Malformed:
        self._body = message.length
        if self._body <= self.limits.body:
            return message
        return self._lose_framing(
            Malformed(
                f"a body here has at most {self.limits.body} bytes",
                fatal=True,
                silent=message.verb == "NOTIFY",
                transaction=message.transaction,
                too_large=True,
            )
        )

    def _next_of_body(self) -> Body | None:
        data = self._buffer[self._start : self._start + self._body]
        if not data:
            return None
        self._start += len(data)
        self._body -= len(data)
        return Body(data, last=not self._body)

    def _check_limits(self, end: int) -> Malformed | None:
        """The error for the first limit, in the order of bytes, that lines up to ``end`` exceed.

        Where they exceed none, it notes how far it has looked, so that the next call goes on there.
        """
        buffer = self._buffer
        limits = self.limits
        last = self._start + limits.head  # where the head must have ended
        start = self._start + self._line
        for count in range(self._lines + 1, limits.lines + 2):
            newline = buffer.find(b"\n", start, end)
            stop = end if newline < 0 else newline
            line = stop - start
            if stop > start and buffer[stop - 1] == 13:  # the CR of the line's end
                line -= 1
            if count > limits.lines and buffer[start:end] not in (b"", b"\r"):
                return self._too_much(f"a message here has at most {limits.lines} lines")
            if line > limits.line and start + limits.line < last:
                return self._too_much(f"a line has at most {limits.line} bytes")
            if (stop + 1 if newline >= 0 else stop) > last:
                return self._too_much(f"a message's lines here have at most {limits.head} bytes")
            if newline < 0:
                self._line = start - self._start
                self._lines = count - 1
                return None
            start = newline + 1
        return None

    def _too_much(self, cause: str) -> Malformed:
        silent = is_notify(self._buffer[self._start : self._start + 16])
        return self._lose_framing(Malformed(cause, fatal=True, silent=silent, too_large=True))

    def _lose_framing(self, malformed: Malformed) -> Malformed:
        """Decode nothing after this error: where the next message begins is not known."""
        self._dead = True
        self._buffer = b""
        self._start = 0
        self._body = 0
        return malformed
