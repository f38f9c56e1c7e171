"""The framing: bytes in, events out, however they are cut (broker.messages.framing)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.messages.framing import (
    AUTHENTICATED,
    UNAUTHENTICATED,
    Body,
    Decoder,
    Event,
    Limits,
    Signal,
)
from broker.messages.message import Malformed, Message
from tests.messages import strategies
from tests.messages.figures import FIGURES, on_the_wire

#: Small enough to be met exactly in a test.
SMALL = Limits(line=20, head=60, lines=5, body=10)

QUERY = Message("QUERY", "STATUS")
ALIVE = Signal.KEEPALIVE
NO_VERB = Malformed("the verb must be REGISTER, QUERY, NOTIFY or REQUEST")
PORT = "Port: must be a number"


def too_much(cause: str, *, silent: bool = False, transaction: str | None = None) -> Malformed:
    """What is said where a limit is broken."""
    return Malformed(cause, fatal=True, silent=silent, too_large=True, transaction=transaction)


def truncated(*, silent: bool = False) -> Malformed:
    """What is said where the input ends within a message."""
    cause = "the input ended before the message did: it ends with an empty line"
    return Malformed(cause, fatal=True, silent=silent)


def length(octets: int, verb: str = "REQUEST") -> Message:
    """A message that announces a body."""
    return Message(verb, Length=octets)


LINE = "a line has at most 20 bytes"
HEAD = "a message's lines here have at most 60 bytes"
LINES = "a message here has at most 5 lines"
BODY = "a body here has at most 10 bytes"

#: What is fed, and the events that come of it, with what is said at the end of input. These hold
#: whether lines end in LF or in CR LF.
CASES: dict[str, tuple[str, Sequence[Event]]] = {
    "nothing": ("", []),
    "one": ("QUERY\nSTATUS\n\n", [QUERY]),
    "verb alone": ("QUERY\n\n", [Message("QUERY")]),
    "two": ("QUERY\nSTATUS\n\nQUERY\nSTATUS\n\n", [QUERY, QUERY]),
    # Empty lines.
    "one empty line before": ("\nQUERY\nSTATUS\n\n", [QUERY]),
    "one empty line between": ("QUERY\nSTATUS\n\n\nQUERY\nSTATUS\n\n", [QUERY, QUERY]),
    "two empty lines": ("\n\n", [ALIVE]),
    "three empty lines": ("\n\n\n", [ALIVE]),
    "four empty lines": ("\n\n\n\n", [ALIVE, ALIVE]),
    "two empty lines between": ("QUERY\nSTATUS\n\n\n\nQUERY\nSTATUS\n\n", [QUERY, ALIVE, QUERY]),
    "one and one empty line": ("\nQUERY\nSTATUS\n\n\n", [QUERY]),
    "a line of blanks is not empty": (" \n\n", [NO_VERB]),
    # Malformed, and survived.
    "unknown verb": ("HELLO\nPort:5\n\nQUERY\nSTATUS\n\n", [NO_VERB, QUERY]),
    "wrong field": ("QUERY\nPort:x\n\nQUERY\nSTATUS\n\n", [Malformed(PORT), QUERY]),
    "wrong field with a transaction": (
        "QUERY\nPort:x\nTransaction:t1\n\n",
        [Malformed(PORT, transaction="t1")],
    ),
    "wrong notify": ("NOTIFY\nPort:x\n\nQUERY\nSTATUS\n\n", [Malformed(PORT, silent=True), QUERY]),
    "keepalive after malformed": ("QUERY\nPort:x\n\n\n\n", [Malformed(PORT), ALIVE]),
    # Malformed, and fatal.
    "wrong length": (
        "QUERY\nLength:x\n\nQUERY\nSTATUS\n\n",
        [Malformed("Length: must be a number", fatal=True)],
    ),
    "length of a wrong message": (
        "QUERY\nPort:x\nLength:5\n\nQUERY\nSTATUS\n\n",
        [Malformed(PORT, fatal=True)],
    ),
    # The end of input.
    "ends in a line": ("QUERY\nSTA", [truncated()]),
    "ends after a line": ("QUERY\nSTATUS\n", [truncated()]),
    "ends in a notify": ("NOTIFY\nSTA", [truncated(silent=True)]),
    "ends after a message": ("QUERY\nSTATUS\n\nQ", [QUERY, truncated()]),
    "ends after an empty line": ("QUERY\nSTATUS\n\n\n", [QUERY]),
    # Limits, at them and one over.
    "line at its limit": (f"QUERY\nCallee:{'x' * 13}\n\n", [Message("QUERY", Callee="x" * 13)]),
    "line over its limit": (f"QUERY\nCallee:{'x' * 14}\n\n", [too_much(LINE)]),
    "first line at its limit": (f"QUERY{' ' * 15}\n\n", [Message("QUERY")]),
    "first line over its limit": (f"QUERY{' ' * 16}\n\n", [too_much(LINE)]),
    "line at its limit, unended": ("x" * 20, [truncated()]),
    "line over its limit, unended": ("x" * 21, [too_much(LINE)]),
    "line over its limit in a notify": (f"NOTIFY\n{'x' * 21}", [too_much(LINE, silent=True)]),
    "lines at their limit": ("QUERY\na:\nb:\nc:\nd:\n\n", [Message("QUERY")]),
    "lines over their limit": ("QUERY\na:\nb:\nc:\nd:\ne:\n\n", [too_much(LINES)]),
    "lines over their limit, unended": ("QUERY\naa:\nbb:\ncc:\ndd:\nee", [too_much(LINES)]),
    "nothing after a limit": (f"{'x' * 21}\n\nQUERY\nSTATUS\n\n\n\n\n", [too_much(LINE)]),
    "limits of each message alone": ("QUERY\na:\nb:\nc:\nd:\n\n" * 3, [Message("QUERY")] * 3),
}

#: These hold for just these bytes.
EXACT: dict[str, tuple[bytes, Sequence[Event]]] = {
    "line ends mixed": (b"QUERY\r\nSTATUS\n\r\nQUERY\nSTATUS\r\n\n\r\n\n", [QUERY, QUERY, ALIVE]),
    "CR alone ends no line": (b"QUERY\rSTATUS\n\n", [NO_VERB]),
    "CR CR LF": (b"QUERY\nSTATUS\r\r\n\r\n", [Malformed("a control character")]),
    "CR CR LF is not empty": (b"QUERY\n\r\r\n\n", [Malformed("a control character")]),
    "head at its limit": (
        b"QUERY\n" + (b"x:" + b"x" * 11 + b"\n") * 3 + b"x:" + b"x" * 9 + b"\n\n",
        [Message("QUERY")],
    ),
    "head at its limit, CR LF": (
        b"QUERY\r\n" + (b"x:" + b"x" * 11 + b"\r\n") * 3 + b"x:456\r\n" + b"\r\n",
        [Message("QUERY")],
    ),
    "head over its limit": (
        b"QUERY\n" + (b"x:" + b"x" * 11 + b"\n") * 3 + b"x:" + b"x" * 10 + b"\n\n",
        [too_much(HEAD)],
    ),
    "head over its limit, unended": (
        b"QUERY\n" + (b"x:" + b"x" * 15 + b"\n") * 3 + b"x",
        [too_much(HEAD)],
    ),
    "head over its limit in a notify": (
        b"NOTIFY\n" + (b"x:" + b"x" * 15 + b"\n") * 3 + b"x",
        [too_much(HEAD, silent=True)],
    ),
    "not UTF-8": (b"QUERY\nCallee:\xff\n\nQUERY\n\n", [Malformed("not UTF-8", fatal=True)]),
    "not UTF-8 in a notify": (
        b"NOTIFY\n\xff\n\n",
        [Malformed("not UTF-8", fatal=True, silent=True)],
    ),
    # Bodies.
    "body": (
        b"REQUEST\nLength:5\n\n\n\n\n\n\nQUERY\nSTATUS\n\n",
        [length(5), Body(b"\n\n\n\n\n", last=True), QUERY],
    ),
    "body of nothing": (b"REQUEST\nLength:0\n\nQUERY\nSTATUS\n\n", [length(0), QUERY]),
    "body at its limit": (
        b"REQUEST\r\nLength:10\r\n\r\nQUERY\n\n\xff\x00\r",
        [length(10), Body(b"QUERY\n\n\xff\x00\r", last=True)],
    ),
    "body over its limit": (b"REQUEST\nLength:11\n\nQUERY\n\n\n\n", [too_much(BODY)]),
    "body over its limit, with a transaction": (
        b"REQUEST\nLength:11\nTransaction:7\n\n",
        [too_much(BODY, transaction="7")],
    ),
    "body over its limit in a notify": (b"NOTIFY\nLength:11\n\n", [too_much(BODY, silent=True)]),
    "keepalive after a body": (
        b"REQUEST\nLength:2\n\n\n\n\r\n\r\n",
        [length(2), Body(b"\n\n", last=True), ALIVE],
    ),
    "ends in a body": (
        b"REQUEST\nLength:5\n\nabc",
        [length(5), Body(b"abc", last=False), truncated(silent=True)],
    ),
    "ends before a body": (b"REQUEST\nLength:5\n\n", [length(5), truncated(silent=True)]),
}  # fmt: skip

for size in range(14, 20):  # heads about as long as a line may be, and another
    name = "x" * (size - 13)
    CASES[f"heads of {size} bytes"] = (
        f"QUERY\nCallee:{name}\n\nQUERY\n\n",
        [Message("QUERY", Callee=name), Message("QUERY")],
    )

EVERY: dict[str, tuple[bytes, Sequence[Event]]] = {
    **EXACT,
    **{f"{name}, LF": (text.encode(), events) for name, (text, events) in CASES.items()},
    **{f"{name}, CR LF": (on_the_wire(text), events) for name, (text, events) in CASES.items()},
}


def decode(limits: Limits, pieces: Iterable[bytes]) -> list[Event]:
    """All events of some bytes as they arrive, and of the end of input.

    Parts of one body are joined: where they are cut is where the bytes were.
    """
    decoder = Decoder(limits)
    events: list[Event] = []
    for piece in pieces:
        decoder.feed(piece)
        while (event := decoder.next_event()) is not None:
            if isinstance(event, Body):
                assert event.data
                before = events[-1]
                if isinstance(before, Body):
                    assert not before.last
                    events[-1] = Body(before.data + event.data, event.last)
                    continue
            events.append(event)
    end = decoder.truncated()
    assert decoder.truncated() is None
    assert decoder.next_event() is None
    return events if end is None else [*events, end]


def cut(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    """Some bytes in pieces."""
    places = sorted({0, len(data), *(place % (len(data) + 1) for place in cuts)})
    return [data[start:end] for start, end in pairwise(places)]


class TableTests:
    """However the bytes arrive, the events are equal."""

    @pytest.mark.parametrize("name", EVERY)
    def test_at_once(self, name: str) -> None:
        """All bytes in one piece."""
        data, events = EVERY[name]
        assert decode(SMALL, [data]) == events

    @pytest.mark.parametrize("name", EVERY)
    def test_byte_by_byte(self, name: str) -> None:
        """One byte at a time."""
        data, events = EVERY[name]
        assert decode(SMALL, cut(data, range(len(data)))) == events

    @settings(deadline=None, max_examples=400)
    @given(st.sampled_from(sorted(EVERY)), st.lists(st.integers(0, 200), max_size=5))
    def test_in_pieces(self, name: str, cuts: list[int]) -> None:
        """Cut anywhere."""
        data, events = EVERY[name]
        assert decode(SMALL, cut(data, cuts)) == events

    @pytest.mark.parametrize("figure", FIGURES)
    def test_figures(self, figure: str) -> None:
        """Each message of the figures is one event, typed or sent."""
        for data in (FIGURES[figure].encode(), on_the_wire(FIGURES[figure])):
            events = decode(UNAUTHENTICATED, cut(data, range(len(data))))
            assert [type(event) for event in events] == [Message]


class ArbitraryTests:
    """Bytes at random."""

    @settings(deadline=None, max_examples=500)
    @given(
        st.lists(strategies.nearly, max_size=3).map(b"".join),
        st.lists(st.integers(0, 200), max_size=8),
    )
    def test_pieces_change_nothing(self, data: bytes, cuts: list[int]) -> None:
        """Any bytes give the same events in one piece, in some, and one by one (I24)."""
        whole = decode(SMALL, [data])
        assert decode(SMALL, cut(data, cuts)) == whole
        assert decode(SMALL, cut(data, range(len(data)))) == whole

    @settings(deadline=None, max_examples=100)
    @given(st.lists(strategies.messages(), max_size=5), st.lists(st.integers(0, 2000), max_size=8))
    def test_messages_in_a_row(self, messages: list[Message], cuts: list[int]) -> None:
        """Whatever is written one after the other is read so."""
        data = b"".join(message.encode() for message in messages)
        assert decode(AUTHENTICATED, cut(data, cuts)) == messages

    def test_after_a_lost_framing(self) -> None:
        """Nothing is taken, nor held, of what follows a fatal message (I15)."""
        decoder = Decoder(SMALL)
        decoder.feed(b"x" * 21)
        assert isinstance(decoder.next_event(), Malformed)
        for _ in range(3):
            decoder.feed(b"QUERY\n\n")
            assert decoder.next_event() is None
        assert not decoder.pending
        assert decoder.take_rest() == b""


class LimitsTests:
    """The limits as they are set."""

    def test_before_and_after_login(self) -> None:
        """8 KiB and 64 lines of 1,024 bytes before login, and no body at all (I14); 64 KiB and 256
        lines after it, and bodies of 16 MiB. Limits that contradict each other are refused.
        """
        limits = [
            (one.head, one.lines, one.line, one.body) for one in (UNAUTHENTICATED, AUTHENTICATED)
        ]
        assert limits == [(8192, 64, 1024, 0), (65536, 256, 1024, 16 * 1024 * 1024)]
        events = decode(UNAUTHENTICATED, [b"REQUEST\nLength:1\n\nx"])
        assert events == [too_much("a body here has at most 0 bytes")]
        with pytest.raises(ValueError, match="longer"):
            Limits(line=100, head=99)

    @pytest.mark.parametrize("limits", [UNAUTHENTICATED, AUTHENTICATED])
    def test_as_set(self, limits: Limits) -> None:
        """Each limit is met exactly at its value, and broken by one more."""
        line = b"x:" + b"x" * (limits.line - 2) + b"\n"
        lines = b"x:\n" * (limits.lines - 1)
        full, part = divmod(limits.head - 6, len(line))  # after the verb's line
        whole = line * full + b"x:" + b"x" * (part - 3)
        for head in (line, lines, whole + b"\n"):
            assert decode(limits, [b"QUERY\n" + head + b"\n"]) == [Message("QUERY")]
        for head in (b"x" + line, b"x:\n" + lines, whole + b"x\n"):
            (event,) = decode(limits, [b"QUERY\n" + head + b"\n"])
            assert isinstance(event, Malformed)
            assert event.too_large
            assert event.fatal

    def test_widened_between_messages(self) -> None:
        """What a login allows holds for the next message already, though it had arrived."""
        decoder = Decoder(SMALL)
        decoder.feed(b"REGISTER\n\nREQUEST\nLength:11\n\nhello world")
        assert decoder.next_event() == Message("REGISTER")
        decoder.limits = AUTHENTICATED
        assert decoder.next_event() == length(11)
        assert decoder.next_event() == Body(b"hello world", last=True)


class BodyTests:
    """Bodies come as they arrive."""

    def test_streamed(self) -> None:
        """A body of 16 MiB is handed over piece by piece; nothing of it is held (I15)."""
        decoder = Decoder(AUTHENTICATED)
        decoder.feed(length(AUTHENTICATED.body).encode())
        assert decoder.next_event() == length(AUTHENTICATED.body)
        piece = bytes(65536)
        for number in range(1, 257):
            assert decoder.next_event() is None
            decoder.feed(piece)
            assert decoder.next_event() == Body(piece, last=number == 256)
        assert decoder.next_event() is None
        assert not decoder.pending

    def test_pending(self) -> None:
        """Something is pending within a message and within a body, and nowhere else."""
        decoder = Decoder(AUTHENTICATED)
        seen = []
        for byte in b"REQUEST\nLength:2\n\nab\n":
            decoder.feed(bytes([byte]))
            while decoder.next_event() is not None:
                pass
            seen.append(decoder.pending)
        assert seen == [True] * 19 + [False, False]


class RestTests:
    """What follows the messages of a connection."""

    @pytest.mark.parametrize(
        ("before", "events", "rest"),
        [
            (
                b"NOTIFY\nSTATUS Busy.\n\n",
                [Message("NOTIFY", "STATUS Busy.")],
                b"\r\n\n\n\x00\xffQUERY\n\n",
            ),
            (
                b"NOTIFY\nLength:3\n\nabc",
                [length(3, "NOTIFY"), Body(b"abc", last=True)],
                b"\n\nrest",
            ),
            (b"QUERY\n\n", [Message("QUERY")], b""),
        ],
    )
    def test_untouched(self, before: bytes, events: list[Event], rest: bytes) -> None:
        """Bytes behind a message, or its body, are given up unchanged; there may be none. Nothing
        is decoded after that.
        """
        decoder = Decoder(AUTHENTICATED)
        decoder.feed(before + rest)
        assert [decoder.next_event() for _ in events] == events
        assert decoder.take_rest() == rest
        assert decoder.take_rest() == b""
        decoder.feed(b"QUERY\n\n")
        assert decoder.next_event() is None
        assert decoder.truncated() is None
