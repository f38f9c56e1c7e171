"""The location table (fig. 7): where each terminal is now. The newest contact wins; all expire.

A contact's host is an IP address, a domain name, or ``Provider`` (¶77–78). A name is stored as
it was registered and resolved each time a caller is told it. What it resolves to is judged as if
the terminal had registered that IP address (`broker.tables.address_policy`).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Final, NamedTuple

#: How many contacts one table holds (I15).
CONTACTS_MOST: Final = 1_000_000
#: Why a new identifier is refused then.
TABLE_FULL: Final = "the table of addresses is full"


class AddressRefused(ValueError):
    """An address may not be registered; the text says why."""


@dataclass(slots=True)
class Origin:
    """Where a contact that is not an IP address was registered from.

    What the name resolves to is judged by it.

    :ivar source: the IP address that the registering connection came from
    :ivar checked: the name resolved to an acceptable address once; shared by all copies of the
        contact
    """

    source: str
    checked: bool = False


@dataclass(frozen=True, slots=True)
class Contact:
    """Where a terminal said it is.

    :ivar host: an IP address; a domain name or ``Provider`` if there is an ``origin``
    :ivar port: the port that its callers connect to
    :ivar registered: when it was registered, in seconds of the table's clock
    :ivar expires: its lifetime in seconds
    :ivar dialable: the mediator may connect to it: the registration came from this address, or
        the operator allows its network
    :ivar origin: set if ``host`` must be resolved before a caller is told it
    """

    host: str
    port: int
    registered: float
    expires: int
    dialable: bool = False
    origin: Origin | None = None


class ResolvedHost(NamedTuple):
    """An IP address that a name resolved to.

    :ivar host: the IP address
    :ivar seconds: its time to live
    """

    host: str
    seconds: float


class ValidatedContact(NamedTuple):
    """What a terminal may register, as a `Contact` holds it."""

    host: str
    dialable: bool
    origin: Origin | None = None


class CandidateOffer(NamedTuple):
    """More candidates of a terminal, valid while its connection is open.

    :ivar local: where it listens in its own network, if it registered that
    :ivar seen: whether callers may be told the address that its connection comes from
    """

    local: Contact | None
    seen: bool


class Binding(NamedTuple):
    """A contact in force (RFC 3261, 10).

    :ivar contact: where
    :ivar until: when it expires, in seconds of the table's clock
    """

    contact: Contact
    until: float


class LocationTable:
    """The contacts of all terminals.

    A contact that is *held* (the connection that registered it is open) does not expire.
    """

    __slots__ = ("_bindings", "_most")

    def __init__(self, most: int = CONTACTS_MOST) -> None:
        self._bindings: dict[str, Binding] = {}
        self._most = most

    def register(self, identifier: str, contact: Contact, *, held: bool = False) -> bool:
        """Record a contact, unless a newer one is in force.

        :return: whether this contact is in force now
        :raises AddressRefused: the table is full
        """
        binding = self._bindings.get(identifier)
        if binding is not None and binding.contact.registered > contact.registered:
            return False
        if binding is None and len(self._bindings) >= self._most:
            raise AddressRefused(TABLE_FULL)
        until = inf if held else contact.registered + contact.expires
        self._bindings[identifier] = Binding(contact, until)
        return True

    def renew(self, identifier: str, contact: Contact, now: float) -> bool:
        """Record a contact that another server vouches for, for ``expires`` seconds from now.

        When it was registered only decides which of two contacts is newer. A contact that is in
        force already is prolonged instead of replaced.

        :return: whether this contact is in force now
        :raises AddressRefused: the table is full
        """
        binding = self._bindings.get(identifier)
        if binding is not None and binding.until > now:
            current = binding.contact
            if current.registered > contact.registered:
                if (current.host, current.port) != (contact.host, contact.port):
                    return False
                until = max(binding.until, now + contact.expires)
                self._bindings[identifier] = Binding(current, until)
                return True
        elif binding is None and len(self._bindings) >= self._most:
            raise AddressRefused(TABLE_FULL)
        self._bindings[identifier] = Binding(contact, now + contact.expires)
        return True

    def lookup(self, identifier: str, now: float) -> Binding | None:
        """Return the binding in force (S802–S807), never an expired one (I10)."""
        binding = self._bindings.get(identifier)
        return None if binding is None or binding.until <= now else binding

    def release(self, identifier: str, contact: Contact, now: float) -> None:
        """Let the lifetime begin: the connection that held this very contact has closed."""
        binding = self._bindings.get(identifier)
        if binding is not None and binding.contact is contact:
            self._bindings[identifier] = Binding(contact, now + contact.expires)

    def withdraw(self, identifier: str) -> None:
        """Remove a terminal's contact."""
        self._bindings.pop(identifier, None)

    def prune(self, now: float) -> int:
        """Remove what has expired; return how many were removed."""
        expired = [name for name, binding in self._bindings.items() if binding.until <= now]
        for name in expired:
            del self._bindings[name]
        return len(expired)

    def __len__(self) -> int:
        return len(self._bindings)
