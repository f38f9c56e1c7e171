"""The seams: what one part of the product asks of another, and what an application may bring.

The roles meet only here and in the messages of ``docs/protocol.md``. Awaitables rather than
Deferreds are asked for, because a step that need not wait should cost none; a Deferred is one too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from twisted.internet.interfaces import IProtocol
from zope.interface import Attribute, Interface

from broker.tables.accounts import AccountChange
from broker.tables.consent_lists import ConsentLists
from broker.tables.disclosures import Disclosure
from broker.tables.groups import GroupChange
from broker.tables.locations import Binding, Contact, ResolvedHost
from broker.tables.permits import PermitChange

#: A change of what must survive; a store knows each kind.
Change = PermitChange | AccountChange | GroupChange | Disclosure


@dataclass(frozen=True, slots=True)
class State:
    """What a store holds.

    :ivar epoch: a token that changes whenever the store may have lost changes it acknowledged
    :ivar permits: every list
    :ivar accounts: every account
    :ivar groups: every group
    """

    epoch: str
    permits: Sequence[PermitChange] = ()
    accounts: Sequence[AccountChange] = ()
    groups: Sequence[GroupChange] = ()


class IStore(Interface):
    """Keeps what must survive."""

    def load() -> Awaitable[State]:
        """All that it holds, to fill the tables with.

        :raises StoreFailed: it can't be read; the server must not start
        """

    def commit(changes: Sequence[Change]) -> Awaitable[None]:
        """Keep changes, all or none of them. Done when they are durable.

        :raises StoreFailed: none of them is kept
        """

    def disclosures(whose: str, before: int, most: int) -> Awaitable[Sequence[Disclosure]]:
        """What was told of one terminal, the newest first.

        :param before: only what was told earlier than this, in microseconds since 1970
        :param most: so many at the most
        :raises StoreFailed: it can't be read
        """

    def prune(before: int) -> Awaitable[int]:
        """Drop the disclosures that are older than this, in microseconds since 1970.

        :return: how many went
        :raises StoreFailed: none of them went
        """

    def stop() -> Awaitable[None]:
        """Keep what waits to be kept, and close; from then on nothing is taken."""


class StoreFailed(Exception):
    """A store could not do what was asked; the text says why, and what to do."""


class IResolver(Interface):
    """Where the mediator looks addresses up and passes them on (fig. 6–8, ¶77)."""

    def register(identifier: str, address: Contact) -> Awaitable[None]:
        """Record an address whose connection is open: it holds until it is released.

        :raises ServiceUnavailable: the resolver is away
        :raises RegistrationFailed: it refused
        """

    def release(identifier: str, address: Contact) -> None:
        """The connection that registered this address is gone: from now on it expires."""

    def withdraw(identifier: str) -> Awaitable[None]:
        """Forget the address of a terminal.

        :raises ServiceUnavailable: the resolver is away
        """

    def add_key(
        identifier: str, key_id: str, key: bytes, port: int, expires: int
    ) -> Awaitable[None]:
        """Take datagrams that are signed with this key for a terminal's (fig. 7, D1).

        It is good until it is released, and for its expiry after that.

        :param key: 32 bytes
        :param port: the port at which the terminal takes calls, where its datagrams come from
        :param expires: seconds for which the key outlives its connection
        :raises ServiceUnavailable: the resolver is away
        :raises RegistrationFailed: it refused
        """

    def release_key(identifier: str, key_id: str) -> None:
        """The connection over which a key was given out is gone: from now on it expires."""

    def drop_keys(identifier: str) -> None:
        """No key of a terminal is good from now on (I2)."""

    def kept(identifier: str) -> Awaitable[Binding]:
        """The same as it was registered: what is no IP address stands there by its name.

        Raises as ``lookup``, but nobody else is asked what the name means.
        """

    def lookup(identifier: str) -> Awaitable[Binding]:
        """The present address of a terminal (S1204); without one, where its datagrams come from.

        :raises CalleeNotFound: it has none (S807)
        :raises ServiceUnavailable: the resolver is away
        """

    def trigger(identifier: str) -> Awaitable[bool]:
        """Ask a terminal once, along the ways its datagrams take, to connect (fig. 8a, E1).

        :return: whether there is such a way; nobody knows whether it arrives
        :raises ServiceUnavailable: the resolver is away
        """


class IAddressSource(Interface):
    """Where addresses are had: DNS, by domain names (A17); a provider, by identifiers (A16)."""

    def locate(name: str) -> Awaitable[Sequence[ResolvedHost]]:
        """The addresses that a name has now; none where it has none, or is unknown.

        :param name: a domain name in its canonical form, or an identifier
        :raises SourceFailed: nobody answers, or in no way that can be understood
        """

    def stop() -> None:
        """Leave no timer behind; nothing more is asked."""


class SourceFailed(Exception):
    """A source of addresses gave no answer."""


class ITrigger(Interface):
    """A way to make a terminal that holds no connection open one."""

    def wake(identifier: str, address: Contact) -> Awaitable[None]:
        """Tell it that a connection is asked for, and nothing else (I26).

        Done when nothing more is to be done than to wait; cancelled when it has come, or nobody
        waits any more.

        :raises CalleeNotConnected: it can't be told
        """


class IOutsideView(Interface):
    """A terminal's connection to its mediator: from there it is seen as others would see it."""

    local_host = Attribute("Our own address on this connection")

    def outside(port: int | None = None) -> Awaitable[tuple[str, int]]:
        """Where this connection is seen to come from.

        :param port: has the mediator try whether a connection to this port at that address arrives
        :return: the address, and this port, or without one that of the connection
        :raises NotReached: it does not arrive
        :raises Refused: the mediator does not try, or does not answer
        :raises ConnectionLost: the connection goes
        """


class IPortOpener(Interface):
    """Has ports of this host opened to the outside, such as in its router (D9).

    Several may want one port: it is closed when the last of them has closed it.
    """

    def open(
        port: int, line: IOutsideView, lost: Callable[[str], object] | None = None
    ) -> Awaitable[tuple[str, int]]:
        """Open one, and see that it can be reached; it is open until it is closed.

        Cancel to give up. Where this fails, or is given up, there is nothing to close.

        :param port: the TCP port that is listened on here, now
        :param line: by what it is seen whether that can be reached
        :param lost: called with the reason when it can be reached no longer, though nobody has
            closed it: open it anew, and then close the one that was
        :return: the host and port by which it is reached from outside
        :raises PortNotOpened: it can't be
        :raises ConnectionLost: the connection to the mediator goes
        """

    def close(port: int) -> Awaitable[None]:
        """One who has had it opened wants it no longer; nothing fails."""


class PortNotOpened(Exception):
    """There is no way in from outside; the text says what was tried."""


class ILoad(Interface):
    """How a terminal decides its status (fig. 18, ¶74, ¶86)."""

    def acceptable() -> bool:
        """Whether a call can be taken now."""


class IConsent(Interface):
    """Whom a terminal accepts, where it is asked each time (C3); its user may be asked in turn."""

    def lists() -> Awaitable[ConsentLists]:
        """Whom it accepts and whom it refuses now; a pair of two sequences does.

        Identifiers, names and groups with their ``@``. Who asks, it does not learn. There are some
        seconds, else nobody is accepted; nor is anybody where this fails.
        """


class ICallHandler(Interface):
    """What an application does with calls that reach it."""

    def call(caller: str, session: str) -> IProtocol | None:
        """Give the protocol that is to speak with a caller, or ``None`` to take no call.

        :param caller: its identifier, proven by the credentials of this session
        """


class ISessionTransport(Interface):
    """Beyond Twisted's ``ITransport``: what a protocol may ask of the call under it."""

    identifier = Attribute("Whom this side is known as")
    peer = Attribute("Whom it speaks with: proven by the credentials of the session")
    session = Attribute("The session's identifier")
    candidate = Attribute("How the two are connected: the method, and the host and port")
    failed_candidates = Attribute("The caller's other candidates, and why each failed")
