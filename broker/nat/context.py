"""What opening ports in a router needs from its surroundings."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from broker.nat.gateway import find_gateway, local_address
from broker.nat.worker import OneThread, Worker

#: Makes one of miniupnpc's ``UPnP``.
MakeIgd = Callable[..., Any]


def find_miniupnpc() -> MakeIgd | None:
    """What makes ``miniupnpc.UPnP``; ``None`` where it isn't installed."""
    try:
        import miniupnpc
    except ImportError:
        return None
    made: MakeIgd = miniupnpc.UPnP
    return made


@dataclass(frozen=True, slots=True)
class NatContext:
    """The host: its reactor, its network, randomness, and a thread for calls that block.

    :ivar reactor: an ``IReactorUDP``, ``IReactorTime`` and ``IReactorFromThreads``
    :ivar find_gateway: finds the router
    :ivar local_address: finds our own address towards a router
    :ivar make_igd: makes one of miniupnpc's ``UPnP``; ``None`` where it isn't installed
    :ivar worker: where UPnP's calls block
    :ivar randomness: gives that many unpredictable bytes
    :ivar jitter: random numbers from 0 to 1
    """

    reactor: Any
    find_gateway: Callable[[], str] = find_gateway
    local_address: Callable[[str], str] = local_address
    make_igd: MakeIgd | None = field(default_factory=find_miniupnpc)
    worker: Worker = field(default_factory=lambda: OneThread("upnp"))
    randomness: Callable[[int], bytes] = os.urandom
    jitter: Callable[[], float] = random.random
