"""Candidates of a call: each an address at which the two terminals may meet, by one method."""

from __future__ import annotations

from typing import Final, NamedTuple

from broker.messages.message import host_port

#: The caller connects to the address that the mediator gives.
DIRECT: Final = "direct"
#: The caller connects to the callee's address in a network that both are in.
LOCAL: Final = "local"
#: Both sides connect at the same time, from the ports of their connections to the mediator.
HOLE_PUNCH: Final = "simultaneous"
#: The callee connects to the caller.
BACK: Final = "back"

_TEXTS: Final = {
    DIRECT: "directly at {}",
    LOCAL: "in the local network at {}",
    HOLE_PUNCH: "by hole punching at {}",
    BACK: "by connecting back to us at {}",
}


class Candidate(NamedTuple):
    """An address at which the two terminals may meet, and how.

    :ivar method: ``DIRECT``, ``LOCAL``, ``HOLE_PUNCH`` or ``BACK``
    :ivar host: the other side's IP address; for ``BACK``, the one that the callee connects to
    :ivar port: the port there
    """

    method: str
    host: str
    port: int

    def __str__(self) -> str:
        return _TEXTS[self.method].format(host_port(self.host, self.port))


class FailedCandidate(NamedTuple):
    """A candidate that did not become the call.

    :ivar candidate: which
    :ivar reason: why it failed, for people
    """

    candidate: Candidate
    reason: str
