"""A mediator in memory: resolver inside, store in memory, randomness that can be repeated."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from broker.interfaces import IResolver, IStore, ITrigger
from broker.mediator.auth.login import Authentication, LoginMethod, PasswordLogin, UnverifiedLogin
from broker.mediator.auth.passwords import Passwords
from broker.mediator.auth.tokens import KEY_BYTES, Tokens
from broker.mediator.auth.verifiers import Cost
from broker.mediator.context import MediatorServices, MediatorSettings
from broker.mediator.server import Mediator, monotonic_wall_clock
from broker.mediator.wakeup_dialer import WakeUpDialer
from broker.net.connection import ConnectionFactory
from broker.net.hub import ConnectionHub
from broker.resolver.locations import LocalResolver
from broker.store.memory import MemoryStore
from broker.tables.accounts import AccountTable
from tests.support.clock import advance, result_of
from tests.support.reactor import FakeReactor
from tests.support.transport import Client, connect


@dataclass(eq=False)
class FakeMediator:
    """A mediator in full, and the network in memory around it.

    :ivar clock: its clock, and its reactor
    :ivar hub: what its connections share
    :ivar factory: makes the protocol of a connection
    """

    clock: FakeReactor
    hub: ConnectionHub
    mediator: Mediator
    store: IStore
    resolver: IResolver
    trigger: ITrigger

    def __post_init__(self) -> None:
        self.factory = ConnectionFactory(self.hub, self.mediator.peer)

    def connect(self, host: str = "127.0.0.1", **addresses: Any) -> Client:
        """A terminal's connection, from this host; ``addresses`` as in ``connect``."""
        return connect(self.factory, self.clock, peer_host=host, **addresses)

    def advance(self, seconds: float) -> None:
        """Let time pass; everything happens at the time at which it falls due."""
        advance(self.clock, seconds)


#: Passwords that cost next to nothing to check.
CHEAP: Final = Cost(8, 1)


def cheap_passwords(seed: int = 1, **options: Any) -> Passwords:
    """Passwords that cost next to nothing; ``options`` are those of ``Passwords``."""
    return Passwords(random.Random(seed).randbytes, cost=CHEAP, **options)


def a_mediator(
    clock: FakeReactor | None = None,
    *,
    store: IStore | None = None,
    resolver: IResolver | None = None,
    trigger: ITrigger | None = None,
    seed: int = 1,
    hub: dict[str, Any] | None = None,
    accounts: Mapping[str, str] | None = None,
    key: bytes = b"k" * KEY_BYTES,
    clear_text: bool = False,
    passwords: Passwords | None = None,
    **options: Any,
) -> FakeMediator:
    """A mediator with a resolver inside, a store in memory, and randomness that can be repeated.

    :param hub: options of ``ConnectionHub``: ``login_timeout``, ``unauthenticated``,
        ``authenticated``, ``trace``
    :param accounts: identifiers and passwords; with them, and be it none, whoever connects must log
        in with a password or a token
    :param key: what its tokens are made with
    :param clear_text: take logins, and give out keys, in clear text to other machines too
    :param options: those of ``MediatorSettings``, and ``wall`` and ``dialer`` of the services
    """
    clock = clock or FakeReactor()
    reactor: Any = clock
    randomness = random.Random(seed).randbytes
    store = store or MemoryStore(randomness)
    state = result_of(store.load())
    if resolver is None:
        resolver = LocalResolver(clock)
    trigger = trigger or WakeUpDialer(reactor)
    dialer = options.pop("dialer", trigger if isinstance(trigger, WakeUpDialer) else None)
    wall = options.pop("wall", time.time)
    shared = ConnectionHub(clock, **(hub or {}))
    passwords = cheap_passwords(seed) if passwords is None else passwords
    table = AccountTable(state.accounts)
    login: LoginMethod = UnverifiedLogin()
    if accounts is not None:
        tokens = Tokens(key, state.epoch, monotonic_wall_clock(wall, clock))
        login = PasswordLogin(table, passwords, tokens, clock, clear_text=clear_text)
    mediator = Mediator(
        MediatorServices(shared, store, resolver, trigger, randomness, wall, dialer),
        state,
        Authentication(table, options.pop("login", login), passwords),
        MediatorSettings(allow_clear_text=clear_text, **options),
    )
    for identifier, password in (accounts or {}).items():
        if mediator.accounts.table.get(identifier) is None:
            result_of(mediator.accounts.add(identifier, password))
    return FakeMediator(clock, shared, mediator, store, resolver, trigger)
