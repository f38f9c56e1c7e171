"""Records: the same whatever pieces they come in, and none that is not in its place."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.terminal.channel.records import (
    DATA_BYTES,
    MESSAGE_BYTES,
    TAG_BYTES,
    BadRecord,
    Records,
    RecordType,
)
from tests.terminal.keys import joined

RECORDS = st.lists(
    st.tuples(
        st.sampled_from((RecordType.DATA, RecordType.END, RecordType.ABORT)), st.binary(max_size=40)
    ),
    min_size=1,
    max_size=8,
)


def opened(records: Records, data: bytes) -> list[tuple[RecordType, bytes]]:
    """What one piece gives; new keys, which concern no other layer, are left out."""
    records.feed(data)
    return [record for record in records if record[0] is not RecordType.REKEY]


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """Data in pieces that end where it is cut."""
    ends = sorted({cut % (len(data) + 1) for cut in cuts} | {len(data)})
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


class SplitTests:
    """How the bytes are cut on their way makes no difference."""

    @settings(deadline=None, max_examples=60)
    @given(sent=RECORDS, cuts=st.lists(st.integers(0, 1000), max_size=12), rekey=st.integers(1, 4))
    def test_any_pieces(
        self, sent: list[tuple[RecordType, bytes]], cuts: list[int], rekey: int
    ) -> None:
        """Any split of the bytes gives the records that were sealed, in order (I21)."""
        ours, theirs = joined(rekey)
        stream = b"".join(ours.seal(kind, data) for kind, data in sent)
        got = [record for piece in pieces(stream, cuts) for record in opened(theirs, piece)]
        assert got == sent

    def test_byte_by_byte(self) -> None:
        """A record is given out with its last byte, and not before."""
        ours, theirs = joined()
        stream = ours.seal(RecordType.DATA, b"hello")
        for byte in stream[:-1]:
            assert opened(theirs, bytes((byte,))) == []
        assert opened(theirs, stream[-1:]) == [(RecordType.DATA, b"hello")]

    def test_reading_may_stop(self) -> None:
        """What was not asked for stays, and nothing comes twice."""
        ours, theirs = joined()
        theirs.feed(b"".join(ours.seal(RecordType.DATA, bytes((n,))) for n in range(3)))
        assert next(iter(theirs)) == (RecordType.DATA, b"\x00")
        theirs.feed(ours.seal(RecordType.DATA, b"\x03"))
        assert list(theirs) == [(RecordType.DATA, bytes((n,))) for n in (1, 2, 3)]

    def test_long_data_takes_several_records(self) -> None:
        """Data of any length goes in records that each fit a Noise message."""
        ours, theirs = joined()
        data = bytes(range(256)) * 600
        got = opened(theirs, ours.seal(RecordType.DATA, data))
        assert [len(piece) for _, piece in got] == [DATA_BYTES, DATA_BYTES, len(data) - 131036]
        assert b"".join(piece for _, piece in got) == data

    def test_longest_record(self) -> None:
        """The longest data of one record makes the longest Noise message, and both are taken."""
        ours, theirs = joined()
        record = ours.seal(RecordType.DATA, bytes(DATA_BYTES))
        assert len(record) == 2 + MESSAGE_BYTES
        assert opened(theirs, record) == [(RecordType.DATA, bytes(DATA_BYTES))]

    def test_empty_data(self) -> None:
        """An empty record is one: with it a caller proves that it is no replay (I7)."""
        ours, theirs = joined()
        record = ours.seal(RecordType.DATA)
        assert len(record) == 2 + 1 + TAG_BYTES
        assert opened(theirs, record) == [(RecordType.DATA, b"")]


class ForgeryTests:
    """What the other side did not send in this place is never given out (I21)."""

    @settings(deadline=None, max_examples=60)
    @given(
        sent=st.lists(st.binary(max_size=20), min_size=1, max_size=5),
        where=st.integers(0, 10_000),
        bit=st.integers(0, 7),
    )
    def test_any_bit(self, sent: list[bytes], where: int, bit: int) -> None:
        """Of a stream with one bit changed, only whole records before it are given out."""
        ours, theirs = joined()
        sealed = [ours.seal(RecordType.DATA, data) for data in sent]
        stream = bytearray(b"".join(sealed))
        position = where % len(stream)
        stream[position] ^= 1 << bit
        got: list[tuple[RecordType, bytes]] = []
        theirs.feed(bytes(stream))
        with suppress(BadRecord):
            got.extend(theirs)
        ends = [sum(map(len, sealed[: n + 1])) for n in range(len(sealed))]
        whole = sum(end <= position for end in ends)
        assert got == [(RecordType.DATA, data) for data in sent[:whole]]

    @pytest.mark.parametrize(
        "order", [(1, 0), (0, 0, 1), (0, 2), (2, 1, 0)], ids=["swapped", "twice", "lost", "late"]
    )
    def test_out_of_place(self, order: tuple[int, ...]) -> None:
        """Records swapped, doubled or left out are refused, and all after them (I21)."""
        ours, theirs = joined()
        sealed = [ours.seal(RecordType.DATA, bytes((n,))) for n in range(3)]
        theirs.feed(b"".join(sealed[n] for n in order))
        got: list[tuple[RecordType, bytes]] = []
        with pytest.raises(BadRecord):
            got.extend(theirs)
        assert got == ([(RecordType.DATA, b"\x00")] if order[0] == 0 else [])

    @pytest.mark.parametrize(
        "bad",
        [
            # What can hold no type byte and tag is refused as soon as its length is seen.
            *((length.to_bytes(2, "big"), b"") for length in (0, 1, TAG_BYTES)),
            (b"\x00\x20", bytes(32)),  # forged
            None,  # of a type that there isn't: it breaks the channel (wire.md)
        ],
        ids=repr,
    )
    def test_nothing_after_what_is_refused(self, bad: tuple[bytes, bytes] | None) -> None:
        """Once one record was refused, the true ones that follow are too (I21)."""
        ours, theirs = joined()
        first = ours._frame(9, b"?") if bad is None else b"".join(bad)  # type: ignore[arg-type]
        theirs.feed(first + ours.seal(RecordType.DATA, b"true"))
        for _ in range(2):
            with pytest.raises(BadRecord):
                list(theirs)

    def test_directions(self) -> None:
        """What we sent comes back as nothing: each direction has its own key and count (I21)."""
        ours, theirs = joined()
        record = ours.seal(RecordType.DATA, b"out")
        ours.feed(record)
        with pytest.raises(BadRecord):
            list(ours)
        assert opened(theirs, record) == [(RecordType.DATA, b"out")]


class RekeyTests:
    """A direction takes a new key after so many records."""

    def test_when(self) -> None:
        """The new key comes before the record that follows so many, so nothing follows an end."""
        ours, theirs = joined(2)
        kinds = []
        for kind in (RecordType.DATA, RecordType.DATA, RecordType.DATA, RecordType.END):
            theirs.feed(ours.seal(kind))
            kinds.append([kind for kind, _ in theirs])
        assert kinds == [
            [RecordType.DATA],
            [RecordType.DATA],
            [RecordType.REKEY, RecordType.DATA],
            [RecordType.END],
        ]

    def test_key_really_changes(self) -> None:
        """A side that missed the order for a new key opens nothing more."""
        ours, theirs = joined(1)
        assert opened(theirs, ours.seal(RecordType.DATA, b"old")) == [(RecordType.DATA, b"old")]
        both = ours.seal(RecordType.DATA, b"new")
        order = 2 + 1 + TAG_BYTES  # the record that orders it comes first
        theirs.feed(both[order:])
        with pytest.raises(BadRecord):
            list(theirs)

    def test_other_side_decides_for_its_own(self) -> None:
        """A side that orders new keys seldom reads one that orders them often."""
        often, seldom = joined(1)
        patient = Records(seldom._cipher)  # the same keys, and another count
        for n in range(5):
            data = bytes((n,))
            assert opened(patient, often.seal(RecordType.DATA, data)) == [(RecordType.DATA, data)]
            assert opened(often, patient.seal(RecordType.DATA, data)) == [(RecordType.DATA, data)]
