"""Disclosures as text, and read back (broker.tables.disclosures)."""

from __future__ import annotations

import string
from typing import Final

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker.messages.grammar import FIELDS
from broker.messages.message import Message, parse
from broker.tables.disclosures import (
    Disclosure,
    format_line,
    format_time,
    parse_line,
    parse_time,
)
from tests.messages.strategies import identifiers

#: 2026-11-21T12:00:05.123456Z
AT: Final = 1_795_262_405_123_456
ONE: Final = Disclosure("Ib", "Ia", "203.0.113.5", 1203, "S1", "@family", AT, 3600)
LINE: Final = (
    "Ia;at=2026-11-21T12:00:05.123456Z;address=203.0.113.5;port=1203;session=S1;by=@family;"
    "expires=3600"
)
#: The first and the last microsecond that can be told.
FIRST: Final = -62_135_596_800_000_000
LAST: Final = 253_402_300_799_999_999

LONGEST: Final = Disclosure(
    *("Ib", "\U0001f4de" * 32, "2001:db8:1111:1111:1111:1111:1111:1111", 65535),
    *("s" * 64, "@" + "x" * 127, LAST, 10**9),
)

times = st.integers(FIRST, LAST)
records = st.builds(
    Disclosure,
    st.just("Ib"),
    identifiers,
    st.ip_addresses().map(str),
    st.integers(1, 65535),
    st.text(string.ascii_letters + string.digits + "._-", min_size=1, max_size=64),
    st.one_of(identifiers, identifiers.map("@{}".format)),
    times,
    st.integers(0, 10**9),
)


class TimeTests:
    """A time as text."""

    def test_the_figure(self) -> None:
        """As the protocol shows it."""
        assert format_time(AT) == "2026-11-21T12:00:05.123456Z"
        assert format_time(0) == "1970-01-01T00:00:00.000000Z"
        assert format_time(FIRST) == "0001-01-01T00:00:00.000000Z"
        assert format_time(LAST) == "9999-12-31T23:59:59.999999Z"

    @pytest.mark.parametrize("at", [FIRST - 1, LAST + 1])
    def test_beyond(self, at: int) -> None:
        """What has no such form is an error, never another time."""
        with pytest.raises(OverflowError):
            format_time(at)

    @settings(deadline=None, max_examples=200)
    @given(times, times)
    def test_round_trip(self, one: int, other: int) -> None:
        """No microsecond is lost; the texts are in the order of the times; a field may hold it."""
        told = format_time(one)
        assert parse_time(told) == one
        assert (told < format_time(other)) == (one < other)
        assert FIELDS["Before"](told) == told

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "2026-11-21",
            "2026-11-21T12:00:05Z",
            "2026-11-21T12:00:05.123456",
            "2026-11-21T12:00:05.123456+00:00",
            "2026-11-21 12:00:05.123456Z",
            "2026-02-30T12:00:05.123456Z",
            "2026-11-21T12:00:05.123456Z\n",
            "٢٠٢٦-11-21T12:00:05.123456Z",
        ],
    )
    def test_not_a_time(self, text: str) -> None:
        """Only the one form is a time."""
        with pytest.raises(ValueError, match="not a time"):
            parse_time(text)


class LineTests:
    """A record as text."""

    def test_the_figure(self) -> None:
        """As the protocol shows it."""
        assert format_line(ONE) == LINE
        assert parse_line("Ib", LINE) == ONE

    @settings(deadline=None, max_examples=300)
    @example(LONGEST)
    @given(records)
    def test_round_trip(self, one: Disclosure) -> None:
        """Whatever the identifiers are like, alone and over the wire; the longest fit a line."""
        line = format_line(one)
        assert len(f"Disclosed:{line}".encode()) <= 1024
        assert parse_line("Ib", line) == one
        assert FIELDS["Disclosed"](line) == line
        read = parse(
            Message("NOTIFY", Disclosed=f"{line}\n{LINE}").encode().removesuffix(b"\n\r\n")
        )
        assert [parse_line("Ib", each) for each in read.fields["Disclosed"].split("\n")] == [
            one,
            ONE,
        ]

    def test_more_is_passed_over(self) -> None:
        """A field of a later version hides nothing from this one."""
        assert parse_line("Ib", LINE + ";weather=fine") == ONE

    @pytest.mark.parametrize(
        "line",
        [
            "",
            "Ia",
            LINE[2:],
            LINE.replace(";by=@family", ""),
            LINE.replace("@family", ""),
            LINE.replace("203.0.113.5", "example.jp"),
            LINE.replace("203.0.113.5", ""),
            LINE.replace("port=1203", "port=65536"),
            LINE.replace("port=1203", "port=+1203"),
            LINE.replace("port=1203", "port=١٢٠٣"),
            LINE.replace("session=S1", "session="),
            LINE.replace("expires=3600", "expires=1_000"),
            LINE.replace("expires=3600", "expires=" + "9" * 5000),
            LINE.replace(".123456", ""),
            LINE + ";port=1203",
            LINE + ";weather",
        ],
    )
    def test_no_line(self, line: str) -> None:
        """What lacks something, or says it twice, is no record."""
        with pytest.raises(ValueError):  # noqa: PT011 - many causes, each its own words
            parse_line("Ib", line)
