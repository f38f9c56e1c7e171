"""The resolver inside the process that asks it: no connection, no wait."""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from zope.interface import implementer

from broker.interfaces import IResolver
from broker.messages.errors import CalleeNotFound, RegistrationFailed
from broker.resolver.name_lookup import NameLookup
from broker.resolver.udp_registrar import UdpRegistrar
from broker.tables.locations import AddressRefused, Binding, Contact, LocationTable
from broker.tables.udp_keys import KeyRefused, UdpKey

#: Seconds between two sweeps of what has expired.
PRUNE_INTERVAL = 60.0


@implementer(IResolver)
class LocalResolver:
    """A location table and its clock.

    :ivar table: the contacts of all terminals
    :ivar naming: resolves contacts that are names
    :ivar registrar: takes registrations by UDP, if this server offers that
    """

    def __init__(
        self,
        clock: IReactorTime,
        table: LocationTable | None = None,
        naming: NameLookup | None = None,
        registrar: UdpRegistrar | None = None,
    ) -> None:
        """
        :param naming: without it, only IP addresses are accepted
        """
        self.registrar = registrar
        self.table = LocationTable() if table is None else table
        self.naming = NameLookup(clock) if naming is None else naming
        self._clock = clock
        self._pruning = LoopingCall(lambda: self.table.prune(clock.seconds()))
        self._pruning.clock = clock

    def start(self) -> None:
        """Begin to sweep what has expired."""
        self._pruning.start(PRUNE_INTERVAL, now=False)

    def stop(self) -> None:
        """Leave no timer behind."""
        if self._pruning.running:
            self._pruning.stop()
        self.naming.stop()

    async def register(self, identifier: str, contact: Contact) -> None:
        """Record a contact; it holds until it is released."""
        if contact.origin is None:
            self.naming.cancel_check(identifier)
        else:
            await self.naming.check(identifier, contact)
        try:
            newest = self.table.register(identifier, contact, held=True)
        except AddressRefused as error:
            raise RegistrationFailed(str(error)) from None
        if not newest:
            raise RegistrationFailed("a newer address is registered")

    def release(self, identifier: str, contact: Contact) -> None:
        """The connection that registered this contact is gone."""
        self.table.release(identifier, contact, self._clock.seconds())

    async def withdraw(self, identifier: str) -> None:
        """Forget a contact."""
        self.naming.cancel_check(identifier)
        self.table.withdraw(identifier)

    async def registered_binding(self, identifier: str) -> Binding:
        """The contact as registered."""
        binding = self.table.lookup(identifier, self._clock.seconds())
        if binding is None:
            raise CalleeNotFound
        return binding

    async def lookup(self, identifier: str) -> Binding:
        """Fig. 8: the contact; without one, the source of the terminal's datagrams."""
        binding = self.table.lookup(identifier, self._clock.seconds())
        if binding is None:
            seen = self.seen(identifier)
            if seen is None:
                raise CalleeNotFound
            return seen
        if binding.contact.origin is not None:
            return await self.find(identifier, binding)
        return binding

    # Terminals that register by UDP.

    async def add_key(
        self, identifier: str, key_id: str, key: bytes, port: int, expires: int
    ) -> None:
        """Accept a key; it is valid until it is released."""
        self.keep(UdpKey(key_id, identifier, key, port, expires))

    def keep(self, key: UdpKey) -> None:
        """Accept a key, or accept it for longer than so far.

        :raises RegistrationFailed: UDP is not offered, or there is no room for the key
        """
        if self.registrar is None:
            raise RegistrationFailed("UDP is not offered by this server")
        try:
            self.registrar.add_key(key)
        except KeyRefused as error:
            raise RegistrationFailed(str(error)) from None

    def release_key(self, identifier: str, key_id: str) -> None:
        """The connection of a key is gone."""
        if self.registrar is not None:
            self.registrar.keys.release(key_id, self._clock.seconds())

    def drop_keys(self, identifier: str) -> None:
        """No key of a terminal is valid from now on."""
        if self.registrar is not None:
            self.registrar.drop_keys(identifier)

    async def trigger(self, identifier: str) -> bool:
        """Ask a terminal to connect."""
        return self.registrar is not None and self.registrar.notify(identifier)

    def seen(self, identifier: str) -> Binding | None:
        """The source of a terminal's datagrams, if it sends any."""
        return None if self.registrar is None else self.registrar.seen(identifier)

    async def find(self, identifier: str, binding: Binding) -> Binding:
        """Resolve a contact that is a name; the result is of the contact then in force.

        :raises CalleeNotFound: it resolves to no address that may be told
        :raises ServiceUnavailable: it can't be resolved now
        """
        while True:
            contact = binding.contact
            if contact.origin is None:
                return binding
            resolved = await self.naming.resolve(identifier, contact)
            now = self.table.lookup(identifier, self._clock.seconds())
            if now is None:
                raise CalleeNotFound
            if now.contact is contact:
                return Binding(resolved, now.until)
            binding = now  # the terminal has registered again since: begin again
