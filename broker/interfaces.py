"""The seams: what one part of broker asks of another, and what an application may provide.

The roles meet only here and in the messages of ``docs/protocol.md``. The methods return awaitables
rather than Deferreds, because a step that need not wait should not cost one; a Deferred is an
awaitable too.
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

#: A change that must survive a restart; a store knows each kind.
Change = PermitChange | AccountChange | GroupChange | Disclosure


@dataclass(frozen=True, slots=True)
class State:
    """What a store holds.

    :ivar epoch: a token that changes whenever the store may have lost acknowledged changes
    :ivar permits: all lists
    :ivar accounts: all accounts
    :ivar groups: all groups
    """

    epoch: str
    permits: Sequence[PermitChange] = ()
    accounts: Sequence[AccountChange] = ()
    groups: Sequence[GroupChange] = ()


class IStore(Interface):
    """Keeps what must survive a restart."""

    def load() -> Awaitable[State]:
        """Everything in the store, to fill the tables with.

        :raises StoreFailed: it can't be read; the server must not start
        """

    def commit(changes: Sequence[Change]) -> Awaitable[None]:
        """Keep changes, all or none of them; done when they are durable.

        :raises StoreFailed: none of them is kept
        """

    def disclosures(whose: str, before: int, most: int) -> Awaitable[Sequence[Disclosure]]:
        """The disclosures of one terminal's addresses, newest first.

        :param before: only earlier ones than this, in microseconds since 1970
        :param most: no more than this number
        :raises StoreFailed: it can't be read
        """

    def prune(before: int) -> Awaitable[int]:
        """Delete the disclosures that are older than this, in microseconds since 1970.

        :return: how many were deleted
        :raises StoreFailed: none was deleted
        """

    def stop() -> Awaitable[None]:
        """Write what is still to be written, and close; nothing is accepted after that."""


class StoreFailed(Exception):
    """A store could not do what was asked; the text says why, and what to do."""


class IResolver(Interface):
    """Where the mediator looks contacts up and passes them on (fig. 6–8, ¶77)."""

    def register(identifier: str, contact: Contact) -> Awaitable[None]:
        """Record a contact whose connection is open: it holds until it is released.

        :raises ServiceUnavailable: the resolver is not available
        :raises RegistrationFailed: it refused
        """

    def release(identifier: str, contact: Contact) -> None:
        """The connection that registered this contact is gone: from now on it expires."""

    def withdraw(identifier: str) -> Awaitable[None]:
        """Forget the contact of a terminal.

        :raises ServiceUnavailable: the resolver is not available
        """

    def add_key(
        identifier: str, key_id: str, key: bytes, port: int, expires: int
    ) -> Awaitable[None]:
        """Accept datagrams signed with this key as a terminal's (fig. 7, D1).

        The key is valid until it is released, and for its expiry after that.

        :param key: 32 bytes
        :param port: the port at which the terminal takes calls, at the address of its datagrams
        :param expires: seconds for which the key is valid after its connection is gone
        :raises ServiceUnavailable: the resolver is not available
        :raises RegistrationFailed: it refused
        """

    def release_key(identifier: str, key_id: str) -> None:
        """The connection that a key was given out over is gone: from now on it expires."""

    def drop_keys(identifier: str) -> None:
        """No key of a terminal is valid from now on (I2)."""

    def registered_binding(identifier: str) -> Awaitable[Binding]:
        """The contact as registered: a name is not resolved.

        :raises CalleeNotFound: it has none
        :raises ServiceUnavailable: the resolver is not available
        """

    def lookup(identifier: str) -> Awaitable[Binding]:
        """The contact of a terminal now (S1204); without one, the source of its datagrams.

        :raises CalleeNotFound: it has none (S807)
        :raises ServiceUnavailable: the resolver is not available
        """

    def trigger(identifier: str) -> Awaitable[bool]:
        """Ask a terminal once, by UDP to the sources of its datagrams, to connect (fig. 8a, E1).

        :return: whether it has such a source; whether the notice arrives is not known
        :raises ServiceUnavailable: the resolver is not available
        """


class IAddressSource(Interface):
    """Resolves names: DNS resolves domain names (A17), a provider identifiers (A16)."""

    def locate(name: str) -> Awaitable[Sequence[ResolvedHost]]:
        """The addresses of a name now; none where it has none, or is unknown.

        :param name: a domain name in its canonical form, or an identifier
        :raises SourceFailed: there is no answer, or none that can be parsed
        """

    def stop() -> None:
        """Leave no timer behind; no question follows."""


class SourceFailed(Exception):
    """A source of addresses gave no answer."""


class ITrigger(Interface):
    """Wakes a terminal: makes one that has no connection open one."""

    def wake(identifier: str, address: Contact) -> Awaitable[None]:
        """Tell it to connect, and nothing else (I26).

        Done when all that is left is to wait; cancelled when the terminal has connected, or no call
        waits for it now.

        :raises CalleeNotConnected: it can't be woken
        """


class IOutsideView(Interface):
    """A terminal's connection to its mediator: seen from outside, as by STUN."""

    local_host = Attribute("Our own address on this connection")

    def outside(port: int | None = None) -> Awaitable[tuple[str, int]]:
        """Our server-reflexive address: where the mediator sees this connection come from.

        :param port: make the mediator try to connect to this port at that address
        :return: the address, with this port, or without one with that of the connection
        :raises NotReached: it does not arrive
        :raises Refused: the mediator does not try, or does not answer
        :raises ConnectionLost: the connection goes
        """


class IPortOpener(Interface):
    """Opens ports of this host to the outside, such as in its router (D9).

    A port that is opened several times is closed with the last ``close``.
    """

    def open(
        port: int, line: IOutsideView, lost: Callable[[str], object] | None = None
    ) -> Awaitable[tuple[str, int]]:
        """Open one, and check that it can be reached; it stays open until it is closed.

        Cancel to give up. After a failure, or when it was given up, there is nothing to close.

        :param port: a TCP port on which this host listens now
        :param line: checks from outside whether it can be reached
        :param lost: called with the reason when the port can't be reached now although it was not
            closed: open it again, then close the first one
        :return: the host and port by which it is reached from outside
        :raises PortNotOpened: it can't be
        :raises ConnectionLost: the connection to the mediator goes
        """

    def close(port: int) -> Awaitable[None]:
        """Undo one ``open``; never fails."""


class PortNotOpened(Exception):
    """The port can't be reached from outside; the text says what was tried."""


class ILoad(Interface):
    """How a terminal decides its status (fig. 18, ¶74, ¶86)."""

    def acceptable() -> bool:
        """Whether a call can be taken now."""


class IConsent(Interface):
    """Which callers a terminal accepts, with the policy ``ask`` (C3); it may ask its user."""

    def lists() -> Awaitable[ConsentLists]:
        """The callers that it accepts and those that it refuses now; a pair of sequences will do.

        Identifiers, names, and groups with their ``@``. The terminal does not learn who calls. It
        has some seconds; if it takes longer or fails, no caller is accepted.
        """


class ICallHandler(Interface):
    """What an application does with calls that reach it."""

    def call(caller: str, session: str) -> IProtocol | None:
        """Return the protocol that speaks with a caller, or ``None`` to refuse the call.

        :param caller: its identifier, proven by the credentials of this session
        """


class ISessionTransport(Interface):
    """Beyond Twisted's ``ITransport``: what a protocol may ask of the call under it."""

    identifier = Attribute("The identifier of this side")
    peer = Attribute("The identifier of the other side, proven by the credentials of the session")
    session = Attribute("The session's identifier")
    candidate = Attribute("How the two are connected: the method, and the host and port")
    failed_candidates = Attribute("The caller's other candidates, and why each failed")
