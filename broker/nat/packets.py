"""The packets of PCP (RFC 6887) and NAT-PMP (RFC 6886), and the routers' clocks. IPv4 only."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address
from typing import Final, NamedTuple

#: The UDP port at which a router answers PCP and NAT-PMP.
SERVER_PORT: Final = 5351

PMP_VERSION: Final = 0
PCP_VERSION: Final = 2

#: The numbers of a protocol: PCP's, and NAT-PMP's opcode for it.
PCP_PROTOCOLS: Final = {"TCP": 6, "UDP": 17}
PMP_OPCODES: Final = {"UDP": 1, "TCP": 2}

PMP_ADDRESS: Final = 0
PCP_MAP: Final = 1
ANSWER: Final = 0x80
SUCCESS: Final = 0
UNSUPPORTED_VERSION: Final = 1  # both protocols' code for it

NONCE_BYTES: Final = 12
PCP_MOST: Final = 1100

_MAPPED: Final = b"\0" * 10 + b"\xff\xff"  # before the four bytes of an IPv4 address
_PCP_REQUEST: Final = struct.Struct("!BBxxI16s12sB3xHH16s")
_PCP_ANSWER: Final = struct.Struct("!BBxBII12x")
_PCP_MAPPING: Final = struct.Struct("!12sB3xHH16s")
_PMP_REQUEST: Final = struct.Struct("!BBxxHHI")
_PMP_ANSWER: Final = struct.Struct("!BBHI")
_PMP_MAPPING: Final = struct.Struct("!HHI")

_PCP_RESULTS: Final = {
    1: "it does not speak this version",
    2: "it does not allow it",
    3: "it finds the request malformed",
    4: "it makes no mappings",
    5: "it does not know an option",
    6: "it finds an option malformed",
    7: "it has no connection itself",
    8: "it has no room for another mapping",
    9: "it does not map this protocol",
    10: "this host has as many mappings as it may have",
    11: "it cannot provide the address or port asked for",
    12: "it is not the next hop: there is another translation between it and this host",
    13: "too many remote peers",
}
_PMP_RESULTS: Final = {
    1: "it does not speak this version",
    2: "it does not allow it",
    3: "it has no connection itself",
    4: "it has no room for another mapping",
    5: "it makes no mappings",
}


class Unreadable(ValueError):
    """It is no answer of a router."""


class PcpMapping(NamedTuple):
    """What a MAP request asks for, or its answer gives.

    :ivar nonce: known to the router and the host that asked alone
    :ivar number: the protocol's
    :ivar port: the host's
    :ivar external: the router's port
    :ivar address: the router's; ``None`` if it is no IPv4 address
    """

    nonce: bytes
    number: int
    port: int
    external: int
    address: IPv4Address | None


class PcpAnswer(NamedTuple):
    """An answer in version 2, or in one that we don't speak.

    :ivar result: 0 for success
    :ivar lifetime: seconds
    :ivar epoch: the router's clock, in seconds
    :ivar mapping: ``None`` in an error that does not repeat it
    """

    version: int
    result: int
    lifetime: int
    epoch: int
    mapping: PcpMapping | None

    @property
    def words(self) -> str:
        """The result, in words."""
        return _PCP_RESULTS.get(self.result, f"it refuses with the unknown result {self.result}")


class PmpAnswer(NamedTuple):
    """An answer in NAT-PMP.

    :ivar opcode: of the request
    :ivar result: 0 for success
    :ivar epoch: the router's clock, in seconds
    :ivar port: the host's; 0 in an answer to the address request, or in an error without it
    """

    opcode: int
    result: int
    epoch: int
    address: IPv4Address | None = None
    port: int = 0
    external: int = 0
    lifetime: int = 0

    @property
    def words(self) -> str:
        """The result, in words."""
        return _PMP_RESULTS.get(self.result, f"it refuses with the unknown result {self.result}")


def pcp_request(client: IPv4Address, mapping: PcpMapping, lifetime: int) -> bytes:
    """A MAP request (RFC 6887, 11.1); with a lifetime of 0 it removes the mapping."""
    return _PCP_REQUEST.pack(
        PCP_VERSION,
        PCP_MAP,
        lifetime,
        _MAPPED + client.packed,
        mapping.nonce,
        mapping.number,
        mapping.port,
        mapping.external,
        _MAPPED + (mapping.address or IPv4Address(0)).packed,
    )


def pmp_address_request() -> bytes:
    """The request for the router's own address (RFC 6886, 3.2)."""
    return bytes((PMP_VERSION, PMP_ADDRESS))


def pmp_request(opcode: int, port: int, external: int, lifetime: int) -> bytes:
    """A request for a mapping (RFC 6886, 3.3); with a lifetime of 0 it removes it."""
    return _PMP_REQUEST.pack(PMP_VERSION, opcode, port, external, lifetime)


def read_answer(data: bytes) -> PcpAnswer | PmpAnswer:
    """Read an answer of a router.

    :raises Unreadable: it is none
    """
    if len(data) < _PMP_ANSWER.size or len(data) > PCP_MOST or not data[1] & ANSWER:
        raise Unreadable
    if data[0] == PMP_VERSION:
        return _read_pmp(data)
    if data[0] == PCP_VERSION:
        return _read_pcp(data)
    if data[3] == UNSUPPORTED_VERSION:  # the header's first words are the same in all versions
        return PcpAnswer(data[0], UNSUPPORTED_VERSION, 0, 0, None)
    raise Unreadable


def _read_pmp(data: bytes) -> PmpAnswer:
    _, opcode, result, epoch = _PMP_ANSWER.unpack_from(data)
    opcode &= ~ANSWER
    rest = data[_PMP_ANSWER.size :]
    if opcode == PMP_ADDRESS:
        if result != SUCCESS:
            return PmpAnswer(opcode, result, epoch)
        if len(rest) == 4:
            return PmpAnswer(opcode, result, epoch, IPv4Address(rest))
    elif len(rest) == _PMP_MAPPING.size and opcode in PMP_OPCODES.values():
        port, external, lifetime = _PMP_MAPPING.unpack(rest)
        return PmpAnswer(opcode, result, epoch, None, port, external, lifetime)
    elif result != SUCCESS:
        return PmpAnswer(opcode, result, epoch)
    raise Unreadable


def _read_pcp(data: bytes) -> PcpAnswer:
    if len(data) < _PCP_ANSWER.size or len(data) % 4:
        raise Unreadable
    version, opcode, result, lifetime, epoch = _PCP_ANSWER.unpack_from(data)
    if opcode != ANSWER | PCP_MAP:
        raise Unreadable
    mapping = None
    if len(data) >= _PCP_ANSWER.size + _PCP_MAPPING.size:
        nonce, number, port, external, address = _PCP_MAPPING.unpack_from(data, _PCP_ANSWER.size)
        is_ipv4 = address.startswith(_MAPPED)
        given = IPv4Address(address[len(_MAPPED) :]) if is_ipv4 else None
        mapping = PcpMapping(nonce, number, port, external, given)
    elif result == SUCCESS:
        raise Unreadable
    return PcpAnswer(version, result, lifetime, epoch, mapping)


class EpochMark:
    """A router's clock when it last answered.

    A router that restarts sets its clock to zero, and has lost its mappings: the clock then stands
    back from where it should be.
    """

    def __init__(self) -> None:
        self._version = -1
        self._router_time = 0
        self._at = 0.0

    def update(self, version: int, router_time: int, now: float) -> bool:
        """Note an answer's clock; tell whether mappings were lost since the last answer.

        :param router_time: the answer's, in seconds
        :param now: our own clock
        """
        passed = now - self._at
        before = self._router_time
        known = version == self._version
        self._version, self._router_time, self._at = version, router_time, now
        if not known:
            return False
        if version == PMP_VERSION:  # RFC 6886, 3.6
            return router_time < before + passed * 7 / 8 - 2
        gained = router_time - before  # RFC 6887, 8.5
        return gained < -1 or passed + 2 < gained * 15 / 16 or gained + 2 < passed * 15 / 16
