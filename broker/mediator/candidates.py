"""Further ways between two terminals, for one call: each is told only if whose it is has said so.

Besides the address that a callee is registered at, there is where it listens in its own network,
for callers in the same one; where its connection is seen to come from, and the caller's, so that
both can open one connection at the same time; and the port at which a caller waits for its callee.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from broker.mediator.connection import Peer, seen_ip
from broker.mediator.sessions import LIFETIME
from broker.messages.errors import BadRequest
from broker.messages.grammar import parse_place
from broker.net.peer_address import local_host_of, remote_host_of, remote_port_of
from broker.tables.address_policy import validate_contact, validate_local
from broker.tables.locations import AddressRefused, CandidateOffer, Contact


class Candidates(NamedTuple):
    """One place that is told for one call.

    :ivar field: the field in which it is
    :ivar callees: it is the callee's, and the caller is told; else the other way about
    """

    field: str
    callees: bool
    address: Contact


def offer(
    peer: Peer, fields: Mapping[str, str], now: float, own_ports: Collection[int]
) -> CandidateOffer | None:
    """What a registration offers; nothing, most of them.

    :raises AddressRefused: it may not be offered
    """
    local = None
    if "Local" in fields:
        host, port = parse_place(fields["Local"])
        source, own = remote_host_of(peer.stream), local_host_of(peer.stream)
        host = validate_local(host, port, source=source, own=own, own_ports=own_ports)
        local = Contact(host, port, now, LIFETIME)
    seen = "Seen" in fields
    return CandidateOffer(local, seen) if seen or local is not None else None


def between(
    caller: Peer,
    callee: Peer,
    fields: Mapping[str, str],
    back: Contact | None,
    now: float,
) -> Sequence[Candidates]:
    """The ways that a call has besides the address that the callee is registered at.

    :param fields: what the caller has asked with
    :param back: where it waits, if it does
    """
    offered = callee.offer
    ways = []
    if offered is not None:
        if offered.local is not None and seen_ip(caller) == seen_ip(callee):
            ways.append(Candidates("Callee Local", True, offered.local))
        if offered.seen and "Seen" in fields:
            ways += _both_seen(caller, callee, now)
    if back is not None:
        ways.append(Candidates("Caller Back", False, back))
    return ways


def _both_seen(caller: Peer, callee: Peer, now: float) -> Sequence[Candidates]:
    """Where either connection comes from: the very ports from which both are to open one."""
    theirs, ours = remote_port_of(callee.stream), remote_port_of(caller.stream)
    callees, callers = seen_ip(callee), seen_ip(caller)
    if theirs is None or ours is None or callees.version != callers.version:
        return ()
    return (
        Candidates("Callee Seen", True, Contact(str(callees), theirs, now, LIFETIME)),
        Candidates("Caller Seen", False, Contact(str(callers), ours, now, LIFETIME)),
    )


def waits_at(caller: Peer, port: int, now: float, own_ports: Collection[int]) -> Contact:
    """Where a caller waits: at the address that we see it at, and nowhere else (I12).

    :param port: as it says
    :raises BadRequest: no callee can come to it there
    """
    source, own = remote_host_of(caller.stream), local_host_of(caller.stream)
    try:
        host = validate_contact(source, port, source=source, own=own, own_ports=own_ports).host
    except AddressRefused as error:
        raise BadRequest(f"Back: {error}") from None
    return Contact(host, port, now, LIFETIME)
