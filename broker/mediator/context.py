"""What the mediator's handlers work with: its services, its settings, and the parts they share."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final

from twisted.internet.interfaces import IReactorTime

from broker.interfaces import IResolver, IStore, ITrigger
from broker.mediator.connections import ConnectionRegistry
from broker.mediator.ledger import Ledger
from broker.mediator.ledger_pruning import DAYS
from broker.mediator.permit_admin import PermitAdmin
from broker.mediator.permits import Permits
from broker.mediator.sessions import Sessions
from broker.mediator.wakeup import TerminalReach
from broker.mediator.wakeup_dialer import WakeUpDialer
from broker.net.hub import ConnectionHub
from broker.tables.address_policy import Network
from broker.tables.grants import Randomness

#: Default UDP keepalive interval in seconds: shorter than a NAT's timeout for a silent UDP flow.
UDP_INTERVAL: Final = 25


@dataclass(frozen=True, slots=True)
class MediatorSettings:
    """What the operator decides.

    :ivar ledger_first: commit each disclosure before the address is sent; else just after
    :ivar ledger_days: days for which disclosures are kept
    :ivar ask_status: ask each callee for its status (fig. 16), or not (fig. 12)
    :ivar status_timeout: seconds in which a call must be decided
    :ivar udp_interval: UDP keepalive interval in seconds, which terminals are told
    :ivar allow_clear_text: send registration keys to other machines in clear text too
    :ivar uniform_refusals: send every refusal of a call as fig. 5c
    :ivar allowed_networks: networks whose addresses may be registered from anywhere, and dialled
    :ivar own_ports: the ports of this server, at which no terminal is; they may be added later,
        when the server listens
    """

    ledger_first: bool = False
    ledger_days: float = DAYS
    ask_status: bool = True
    status_timeout: float = 5.0
    udp_interval: int = UDP_INTERVAL
    allow_clear_text: bool = False
    uniform_refusals: bool = False
    allowed_networks: Collection[Network] = ()
    own_ports: Collection[int] = ()


@dataclass(frozen=True, slots=True)
class MediatorServices:
    """What a mediator is given of the world outside it.

    :ivar hub: its connections, and the clock
    :ivar store: keeps permits, accounts, groups and disclosures durably
    :ivar resolver: knows where each terminal is
    :ivar wakeup: makes a terminal connect that holds no connection
    :ivar randomness: gives a number of random bytes
    :ivar wall: the time in seconds since 1970
    :ivar dialer: tries whether a terminal's port can be reached; without, none is tried
    """

    hub: ConnectionHub
    store: IStore
    resolver: IResolver
    wakeup: ITrigger
    randomness: Randomness
    wall: Callable[[], float] = time.time
    dialer: WakeUpDialer | None = None


@dataclass(frozen=True, slots=True)
class MediatorContext:
    """What every handler of requests works with. What is on a call's way binds it locally.

    :ivar clock: deadlines and the age of addresses go by it
    :ivar wall: the time in seconds since 1970; it goes on as the clock does, so no step moves it
    :ivar randomness: gives a number of random bytes
    :ivar epoch: the store's; a terminal that sees another one registers everything again
    :ivar store: keeps permits, accounts, groups and disclosures durably
    :ivar resolver: knows where each terminal is
    :ivar permits: who accepts which callers
    :ivar permit_admin: the operator's changes of groups, and of all lists at once
    :ivar connections: which connections each terminal has, and over which it is reached
    :ivar reach: gets the active connection of a terminal, waking it where it has none
    :ivar sessions: the sessions granted here
    :ivar disclosures: every address that is told goes through this ledger
    :ivar counts: how often each outcome came, for the operator
    """

    clock: IReactorTime
    wall: Callable[[], float]
    randomness: Randomness
    epoch: str
    store: IStore
    resolver: IResolver
    permits: Permits
    permit_admin: PermitAdmin
    connections: ConnectionRegistry
    reach: TerminalReach
    sessions: Sessions
    disclosures: Ledger
    settings: MediatorSettings = field(default_factory=MediatorSettings)
    counts: Counter[str] = field(default_factory=Counter)
