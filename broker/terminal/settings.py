"""What a terminal is configured with: where it is reached, who may call, how it logs in."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

from twisted.internet.interfaces import IStreamServerEndpoint

from broker.interfaces import ICallHandler, IConsent, ILoad, IPortOpener
from broker.net.hub import Trace
from broker.tables.address_policy import Network
from broker.tables.grants import Randomness
from broker.terminal.calls.dial_back import Admits
from broker.terminal.registration.client import ANSWER_TIMEOUT
from broker.terminal.registration.keepalive_interval import LONGEST

#: Seconds for which an idle connection is kept: a request that was sent over it can be answered.
LINGER: Final = ANSWER_TIMEOUT


@dataclass(frozen=True, kw_only=True)
class TerminalSettings:
    """The settings of one terminal. Without any, it takes no calls and can only make them.

    Calls:

    :ivar handler: the application that takes calls; without one, the terminal is always busy
    :ivar load: decides whether one more call can be taken; default: always
    :ivar one_at_a_time: be busy during a call (A25)

    Where callers find it:

    :ivar listen: where it takes calls; without, only by connecting to its callers
    :ivar address: the IP address to register; default: our own on the mediator's connection
    :ivar port: the port to register; default: the one that it listens on
    :ivar name: a second name to register (C1)
    :ivar opener: opens ports in the router, for calls in which the callee connects to us
    :ivar open_port: also keep the listener's port open in the router, and register the address
        and port outside in place of ``address`` and ``port``. While it cannot be opened, the
        terminal works as without it

    Who may call:

    :ivar accept: identifiers to permit, added once for each epoch of the mediator's store
    :ivar policy: the call policy to register: ``'List'``, ``'Ask'`` or ``'Password'``; ``None``
        keeps the current one
    :ivar consent: gives the lists of callers where the policy is ``'Ask'`` (C3); without, every
        caller is refused
    :ivar call_password: a caller that knows it is called back (D7); or a function that decides,
        given the caller and what it shows. Without, no caller is
    :ivar call_back_to: networks to call back to, in addition to the Internet and the scope of
        network that the mediator is in

    Logging in:

    :ivar password: the password, or a function that gives it when it is needed: first, and
        whenever the mediator refuses the token of the last login. The function returns ``None``
        where there is no password and raises ``ValueError`` where it cannot be read
    :ivar allow_clear_text: whether password and token may be sent to another machine unencrypted

    Registration by UDP:

    :ivar udp: the resolver's host and UDP port (D1); host ``None``: the mediator's. Callers are
        then given the address that the datagrams come from, unless ``address`` is set
    :ivar hold: keep the connection to the mediator open. If false, it is closed when idle and
        made again for a notice or a call; needs ``udp``
    :ivar linger: seconds that an idle connection is kept open
    :ivar keepalive_most: the longest interval between keepalives, in seconds

    The environment, so that tests can replace it:

    :ivar jitter: gives numbers from 0 to 1, which spread the reconnections of many terminals
    :ivar randomness: gives random bytes
    :ivar trace: called with each message sent or received

    :raises ValueError: ``open_port`` without an ``opener``
    """

    handler: ICallHandler | None = None
    load: ILoad | None = None
    one_at_a_time: bool = False

    listen: IStreamServerEndpoint | None = None
    address: str | None = None
    port: int | None = None
    name: str | None = None
    opener: IPortOpener | None = None
    open_port: bool = False

    accept: Sequence[str] = ()
    policy: str | None = None
    consent: IConsent | None = None
    call_password: str | Admits | None = None
    call_back_to: Collection[Network] = ()

    password: str | Callable[[], str | None] | None = None
    allow_clear_text: bool = False

    udp: tuple[str | None, int] | None = None
    hold: bool = True
    linger: float = LINGER
    keepalive_most: float = LONGEST

    jitter: Callable[[], float] = random.random
    randomness: Randomness = os.urandom
    trace: Trace | None = None

    def __post_init__(self) -> None:
        if self.open_port and self.opener is None:
            raise ValueError("open_port needs an opener")
