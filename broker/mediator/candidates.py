"""Candidates of one call: other addresses at which the two terminals may reach each other.

Like the candidates of ICE (RFC 8445), and each is sent only if its terminal has offered it. Those
in addition to the address at which a callee is registered: where it listens in its own network, for
callers in the same one (host); where the callee's and the caller's connections come from, so that
both can open one connection at the same time (server-reflexive, hole punching); and the port at
which a caller waits for its callee.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from broker.mediator.connection import TerminalConnection, seen_ip
from broker.mediator.sessions import LIFETIME
from broker.messages.errors import BadRequest
from broker.messages.grammar import parse_transport_address
from broker.net.peer_address import local_host_of, remote_host_of, remote_port_of
from broker.tables.address_policy import validate_contact, validate_local
from broker.tables.locations import AddressRefused, CandidateOffer, Contact


class OfferedCandidate(NamedTuple):
    """One candidate of one call.

    :ivar field: the field that carries it
    :ivar callees: whether it is the callee's, and is sent to the caller; else the other way round
    :ivar address: the address and port
    """

    field: str
    callees: bool
    address: Contact


def offer(
    peer: TerminalConnection, fields: Mapping[str, str], now: float, own_ports: Collection[int]
) -> CandidateOffer | None:
    """What a registration offers to callers; most offer nothing.

    :raises AddressRefused: it may not be offered
    """
    local = None
    if "Local" in fields:
        host, port = parse_transport_address(fields["Local"])
        source, own = remote_host_of(peer.stream), local_host_of(peer.stream)
        host = validate_local(host, port, source=source, own=own, own_ports=own_ports)
        local = Contact(host, port, now, LIFETIME)
    seen = "Seen" in fields
    return CandidateOffer(local, seen) if seen or local is not None else None


def between(
    caller: TerminalConnection,
    callee: TerminalConnection,
    fields: Mapping[str, str],
    back: Contact | None,
    now: float,
) -> Sequence[OfferedCandidate]:
    """The candidates of a call, in addition to the address that the callee is registered at.

    :param fields: of the caller's request
    :param back: where the caller waits, if it does
    """
    offered = callee.offer
    candidates = []
    if offered is not None:
        # They have one public address: behind one NAT, most likely in one network.
        if offered.local is not None and seen_ip(caller) == seen_ip(callee):
            candidates.append(OfferedCandidate("Callee Local", True, offered.local))
        if offered.seen and "Seen" in fields:
            candidates += _both_seen(caller, callee, now)
    if back is not None:
        candidates.append(OfferedCandidate("Caller Back", False, back))
    return candidates


def _both_seen(
    caller: TerminalConnection, callee: TerminalConnection, now: float
) -> Sequence[OfferedCandidate]:
    """Where either connection comes from: the very ports between which both open a connection."""
    callee_port, caller_port = remote_port_of(callee.stream), remote_port_of(caller.stream)
    callee_ip, caller_ip = seen_ip(callee), seen_ip(caller)
    if callee_port is None or caller_port is None or callee_ip.version != caller_ip.version:
        return ()
    return (
        OfferedCandidate("Callee Seen", True, Contact(str(callee_ip), callee_port, now, LIFETIME)),
        OfferedCandidate("Caller Seen", False, Contact(str(caller_ip), caller_port, now, LIFETIME)),
    )


def waits_at(
    caller: TerminalConnection, port: int, now: float, own_ports: Collection[int]
) -> Contact:
    """Where a caller waits: at the address that its connection comes from, and no other (I12).

    :param port: as the caller says
    :raises BadRequest: no callee can connect to it there
    """
    source, own = remote_host_of(caller.stream), local_host_of(caller.stream)
    try:
        host = validate_contact(source, port, source=source, own=own, own_ports=own_ports).host
    except AddressRefused as error:
        raise BadRequest(f"Back: {error}") from None
    return Contact(host, port, now, LIFETIME)
