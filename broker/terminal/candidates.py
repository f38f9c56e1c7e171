"""Candidates of a call: each an address at which the two terminals may meet, by one method."""

from __future__ import annotations

from typing import Final, NamedTuple

from broker.messages.message import host_port

#: The callee is dialled where its mediator said.
DIRECT: Final = "direct"
#: The callee is dialled where it listens in its own network, which is also the caller's.
LOCAL: Final = "local"
#: Both sides dial each other, from the ports of their connections to the mediator.
HOLE_PUNCH: Final = "simultaneous"
#: The callee dials the caller.
BACK: Final = "back"

_TOLD: Final = {
    DIRECT: "directly at {}",
    LOCAL: "within the network at {}",
    HOLE_PUNCH: "by both sides dialling, at {}",
    BACK: "by coming to us at {}",
}


class Candidate(NamedTuple):
    """One way of a call.

    :ivar method: ``DIRECT``, ``LOCAL``, ``HOLE_PUNCH`` or ``BACK``
    :ivar host: the other side's IP address; for ``BACK``, where the caller is come to
    :ivar port: the port there
    """

    method: str
    host: str
    port: int

    def __str__(self) -> str:
        return _TOLD[self.method].format(host_port(self.host, self.port))


class FailedCandidate(NamedTuple):
    """A way that did not lead to the call.

    :ivar candidate: which
    :ivar reason: what became of it
    """

    candidate: Candidate
    reason: str
