"""Packets of PCP and NAT-PMP, byte for byte, and the routers' clocks."""

from __future__ import annotations

from contextlib import suppress
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.nat.packets import (
    EpochMark,
    PcpAnswer,
    PcpMapping,
    PmpAnswer,
    Unreadable,
    pcp_request,
    pmp_address_request,
    pmp_request,
    read_answer,
)

NONCE = bytes(range(12))
V4 = "00000000000000000000ffff"

# RFC 6887, 7.1 and 11.1.
PCP_REQUEST = bytes.fromhex(
    f"02010000 00000e10 {V4}c0a80102"  # version 2, MAP, an hour, the client's address
    "000102030405060708090a0b"  # nonce
    f"06000000 1b58 1b59 {V4}00000000"  # TCP, internal port, suggested port and address
)
# RFC 6887, 7.2 and 11.1.
PCP_ANSWER = bytes.fromhex(
    "02810000 00000708 00012345 000000000000000000000000"
    "000102030405060708090a0b"
    f"06000000 1b58 9c40 {V4}0b007101"
)
GIVEN = PcpMapping(NONCE, 6, 7000, 40000, IPv4Address("11.0.113.1"))


def refused(result: int) -> bytes:
    """The same answer with a result."""
    return PCP_ANSWER[:3] + bytes((result,)) + PCP_ANSWER[4:]


def test_requests() -> None:
    """As the RFCs draw them: version 2, and NAT-PMP (RFC 6886, 3.2 and 3.3)."""
    asked = PcpMapping(NONCE, 6, 7000, 7001, None)
    assert pcp_request(IPv4Address("192.168.1.2"), asked, 3600) == PCP_REQUEST
    assert len(PCP_REQUEST) == 60
    assert pmp_address_request() == b"\0\0"
    assert pmp_request(2, 7000, 7001, 3600) == bytes.fromhex("0002 0000 1b58 1b59 00000e10")


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        # As the RFC draws it, also with options after it, up to eleven hundred bytes.
        *(
            (PCP_ANSWER + bytes(options), PcpAnswer(2, 0, 1800, 0x12345, GIVEN))
            for options in (0, 8, 1040)
        ),
        # What is assigned is told as it is, except that it is no IPv4 address.
        (
            PCP_ANSWER[:44] + bytes.fromhex("20010db8000000000000000000000001"),
            PcpAnswer(2, 0, 1800, 0x12345, GIVEN._replace(address=None)),
        ),
        # An error is read with the mapping, or without.
        (refused(2), PcpAnswer(2, 2, 1800, 0x12345, GIVEN)),
        (refused(2)[:24], PcpAnswer(2, 2, 1800, 0x12345, None)),
        # Of a version that we don't speak, only that it is so is read.
        (bytes.fromhex("01810001 00000000 00000000") + bytes(12), PcpAnswer(1, 1, 0, 0, None)),
        # NAT-PMP: RFC 6886, 3.2 to 3.5.
        (
            bytes.fromhex("0080 0000 00012345 0b007101"),
            PmpAnswer(0, 0, 0x12345, IPv4Address("11.0.113.1")),
        ),
        *(
            (
                bytes.fromhex(f"008{opcode} 0000 00012345 1b58 9c40 00000708"),
                PmpAnswer(opcode, 0, 0x12345, None, 7000, 40000, 1800),
            )
            for opcode in (1, 2)
        ),
        # Errors of each length that routers give them.
        (bytes.fromhex("0081 0001 00012345"), PmpAnswer(1, 1, 0x12345)),
        (bytes.fromhex("0080 0003 00012345 00000000"), PmpAnswer(0, 3, 0x12345)),
        (
            bytes.fromhex("0082 0002 00012345 1b58 0000 00000000"),
            PmpAnswer(2, 2, 0x12345, None, 7000, 0, 0),
        ),
        # An opcode that it does not know, with what was asked after it.
        (bytes.fromhex("0083 0005 00012345"), PmpAnswer(3, 5, 0x12345)),
    ],
)
def test_answers(data: bytes, answer: PcpAnswer | PmpAnswer) -> None:
    """What routers answer, byte for byte."""
    assert read_answer(data) == answer


def test_words() -> None:
    """Each error has its words."""
    assert PcpAnswer(2, 2, 0, 0, None).words == "it does not allow it"
    assert PcpAnswer(2, 77, 0, 0, None).words == "it refuses with the unknown result 77"
    assert len({PcpAnswer(2, result, 0, 0, None).words for result in range(1, 15)}) == 14
    assert PmpAnswer(1, 5, 0).words == "it makes no mappings"
    assert len({PmpAnswer(1, result, 0).words for result in range(1, 7)}) == 6


@pytest.mark.parametrize(
    "data",
    [
        *(PCP_ANSWER[:length] for length in (0, 1, 7, 20, 24, 58, 59)),
        PCP_ANSWER + b"x",
        PCP_ANSWER + bytes(1044),  # more than 1100
        PCP_REQUEST,
        PCP_ANSWER[:1] + b"\x80" + PCP_ANSWER[2:],  # ANNOUNCE
        PCP_ANSWER[:1] + b"\x82" + PCP_ANSWER[2:],  # PEER
        bytes.fromhex("01810000 00000000 00000000") + bytes(12),  # another version, and no error
        *map(
            bytes.fromhex,
            (
                "0080 0000 00012345",
                "0080 0000 00012345 0b0071",
                "0080 0000 00012345 0b007101 00",
                "0081 0000 00012345",
                "0081 0000 00012345 1b58 9c40 000007",
                "0081 0000 00012345 1b58 9c40 00000708 00",
                "0083 0000 00012345 1b58 9c40 00000708",
                "0001 0000 00012345 1b58 9c40 00000708",
                "0081 0001 000123",
            ),
        ),
    ],
)
def test_unreadable(data: bytes) -> None:
    """What is cut short, too long, odd, or no answer to what is asked here."""
    with pytest.raises(Unreadable):
        read_answer(data)


ADDRESSES = st.ip_addresses(v=4)
PORTS = st.integers(0, 0xFFFF)
LONG = st.integers(0, 0xFFFFFFFF)


@given(st.binary(max_size=1200))
def test_anything(data: bytes) -> None:
    """It is read, or it is unreadable."""
    for start in (b"", b"\x02\x81\0\0", b"\x02\x81\0\1", b"\0\x80\0\0", b"\0\x81\0\0"):
        with suppress(Unreadable):
            read_answer(start + data)


@given(st.binary(min_size=12, max_size=12), st.integers(0, 255), PORTS, PORTS, ADDRESSES, LONG)
def test_what_is_asked_can_be_given(
    nonce: bytes, number: int, port: int, external: int, address: IPv4Address, life: int
) -> None:
    """A request with the header of an answer is read as what was asked for."""
    asked = PcpMapping(nonce, number, port, external, address)
    packet = bytearray(pcp_request(address, asked, life))
    packet[1] |= 0x80
    packet[8:24] = bytes(16)
    assert read_answer(bytes(packet)) == PcpAnswer(2, 0, life, 0, asked)


@given(st.sampled_from([1, 2]), PORTS, PORTS, LONG, LONG)
def test_the_older_too(opcode: int, port: int, external: int, lifetime: int, epoch: int) -> None:
    """The same of NAT-PMP."""
    packet = pmp_request(opcode, port, external, lifetime)
    data = bytes((0, opcode | 0x80, 0, 0)) + epoch.to_bytes(4) + packet[4:]
    assert read_answer(data) == PmpAnswer(opcode, 0, epoch, None, port, external, lifetime)


@pytest.mark.parametrize(
    ("version", "told", "lost"),
    [
        # A hundred seconds after 1000 was told. RFC 6886: 7/8 of the time, and two seconds.
        (0, 1100, False),
        (0, 1086, False),
        (0, 1085, True),
        (0, 9999, False),
        (0, 0, True),
        # RFC 6887: a sixteenth and two seconds, either way.
        (2, 1100, False),
        (2, 1092, False),
        (2, 1091, True),
        (2, 1108, False),
        (2, 1109, True),
        (2, 0, True),
    ],
)
def test_a_clock_a_hundred_seconds_later(version: int, told: int, lost: bool) -> None:
    """How far a router's clock may be astray."""
    epoch = EpochMark()
    assert not epoch.update(version, 1000, 50.0)
    assert epoch.update(version, told, 150.0) is lost


def test_a_clock_from_one_to_the_next() -> None:
    """It is compared with what was told last, and begins anew with another version.

    One second back is nothing: packets may overtake each other.
    """
    epoch = EpochMark()
    assert [
        epoch.update(version, told, now)
        for version, told, now in (
            *((2, 1000, 50.0), (2, 999, 50.0), (2, 997, 50.0)),
            *((2, 5, 51.0), (2, 6, 52.0), (0, 1, 53.0), (2, 1, 54.0)),
        )
    ] == [False, False, True, True, False, False, False]
