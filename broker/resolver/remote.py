"""The resolver in a process of its own, as the mediator holds it.

What the resolver must be told, and told again, is kept by ``Replication``; what is asked goes over
the same ``ResolverLink``. While the link is up, a contact that the resolver has accepted from here
is in force until it says otherwise, which it does unasked: so that look-up needs no question.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IStreamClientEndpoint
from zope.interface import implementer

from broker.interfaces import IResolver
from broker.messages.errors import CalleeNotFound, RegistrationFailed, ServiceUnavailable
from broker.messages.grammar import QUERY, REQUEST
from broker.messages.message import Message
from broker.messages.statements import (
    CALLEE_NOT_CONNECTED,
    CALLEE_NOT_FOUND,
    CONNECTION_REQUESTED,
    LOOKUP,
    REGISTRATION_COMPLETED,
    REGISTRATION_FAILED,
    REQUEST_ACCEPTED,
)
from broker.net.hub import ConnectionHub
from broker.resolver.link import QUESTIONS_MOST, LinkEvents, ResolverLink
from broker.resolver.name_lookup import NameLookup
from broker.resolver.replication import Replication, key_handover, registration, withdrawal
from broker.tables.address_policy import PROVIDER, parse_domain, parse_ip, routable_ip
from broker.tables.locations import AddressRefused, Binding, Contact, Origin
from broker.tables.udp_keys import KeyRefused, UdpKey


@implementer(IResolver)
class RemoteResolver(LinkEvents):
    """Asks the resolver at an endpoint.

    :ivar link: the link to it
    :ivar replication: what it must be told
    """

    def __init__(
        self,
        hub: ConnectionHub,
        endpoint: IStreamClientEndpoint,
        *,
        jitter: Callable[[], float],
        secret: str | None = None,
        naming: NameLookup | None = None,
    ) -> None:
        """
        :param jitter: as for a ``ReconnectingClient``
        :param secret: what the resolver requires a mediator to show
        :param naming: resolves contacts that are domain names; without it, none are accepted
        """
        self.link = ResolverLink(hub, endpoint, self, jitter=jitter, secret=secret)
        self.replication = Replication(hub.clock, self.link)
        self._terminals = self.replication.terminals
        self._naming = NameLookup(hub.clock) if naming is None else naming
        self._clock = hub.clock

    def start(self) -> None:
        """Connect to the resolver."""
        self.link.start()
        self.replication.start()

    def stop(self) -> Deferred[None]:
        """Disconnect, and leave no timer behind; fires when the link is closed."""
        stopped = self.link.stop()
        self._naming.stop()
        self.replication.stop()
        return stopped

    # As the events of its link.

    def up(self) -> None:
        """Tell the resolver everything: it may have forgotten it."""
        self.replication.tell_everything()

    def down(self) -> None:
        """From now on a look-up must ask."""
        self.replication.link_lost()

    def superseded(self, identifier: str) -> None:
        """From now on a look-up of this terminal must ask."""
        self.replication.superseded(identifier)

    # As the mediator asks it.

    async def register(self, identifier: str, contact: Contact) -> None:
        """Pass a contact on; it holds until it is released.

        A domain name is looked up here first; the provider is asked by the resolver.
        """
        if contact.origin is not None and contact.host != PROVIDER:
            await self._naming.check(identifier, contact)
        else:
            self._naming.cancel_check(identifier)
        answer = await self._ask(identifier, registration(identifier, contact), undo=True)
        self._check_registered(answer)
        self.replication.registered(identifier, contact)

    def release(self, identifier: str, contact: Contact) -> None:
        """The connection that registered this contact is gone."""
        self.replication.released(identifier, contact)

    async def withdraw(self, identifier: str) -> None:
        """Have a contact forgotten."""
        self._naming.cancel_check(identifier)
        answer = await self._ask(identifier, withdrawal(identifier), undo=False)
        if answer.statement != REGISTRATION_COMPLETED:
            raise self.link.unexpected(answer)
        self.replication.withdrawn(identifier)

    async def lookup(self, identifier: str) -> Binding:
        """Fig. 8: over the link, or at once where the resolver's answer is known."""
        terminal = self._terminals.get(identifier)
        if terminal is not None and terminal.in_force:
            contact = terminal.contact
            if contact is not None and contact.origin is None:
                return Binding(contact, inf)
        return await self._find(identifier)

    async def _find(self, identifier: str) -> Binding:
        """The contact of a terminal, where it isn't known to be an IP address and in force."""
        while True:
            known = self._in_force(identifier)
            binding = known or await self._ask_where(identifier)
            contact = binding.contact
            if contact.origin is None:
                return binding
            resolved = await self._naming.resolve(identifier, contact)
            now = self._in_force(identifier)
            # Another may have been registered while the name was resolved: then begin again.
            if known is None if now is None else now.contact is contact:
                return Binding(resolved, binding.until)

    async def registered_binding(self, identifier: str) -> Binding:
        """The contact as registered."""
        terminal = self._terminals.get(identifier)
        if terminal is not None and terminal.in_force and terminal.contact is not None:
            return Binding(terminal.contact, inf)
        return await self._ask_where(identifier, registered=True)

    async def add_key(
        self, identifier: str, key_id: str, key: bytes, port: int, expires: int
    ) -> None:
        """Hand a key over, and keep it to tell it again."""
        kept = UdpKey(key_id, identifier, key, port, expires)
        self._check_registered(await self._ask(identifier, key_handover(kept, expires)))
        try:
            self.replication.add_key(kept)
        except KeyRefused as error:
            raise RegistrationFailed(str(error)) from None

    def release_key(self, identifier: str, key_id: str) -> None:
        """The connection of a key is gone."""
        self.replication.release_key(identifier, key_id)

    def drop_keys(self, identifier: str) -> None:
        """No key of a terminal is valid from now on."""
        self.replication.drop_keys(identifier)

    async def trigger(self, identifier: str) -> bool:
        """Have a terminal asked to connect."""
        message = Message.of(REQUEST, {"": CONNECTION_REQUESTED, "Callee": identifier})
        answer = await self._ask(identifier, message)
        if answer.statement not in (REQUEST_ACCEPTED, CALLEE_NOT_CONNECTED):
            raise self.link.unexpected(answer)
        return answer.statement == REQUEST_ACCEPTED

    # Questions.

    async def _ask_where(self, identifier: str, *, registered: bool = False) -> Binding:
        """Ask where a terminal is.

        :param registered: where its datagrams come from does not count
        """
        question = Message.of(QUERY, {"": LOOKUP, "Callee": identifier})
        answer = await self._ask(identifier, question)
        if answer.statement == CALLEE_NOT_FOUND or (registered and "UDP" in answer.fields):
            raise CalleeNotFound
        return self._binding(identifier, answer)

    def _in_force(self, identifier: str) -> Binding | None:
        """The contact in force, where the resolver need not be asked.

        Where the contact is ``Provider``, only the resolver knows the address.
        """
        terminal = self._terminals.get(identifier)
        contact = terminal.contact if terminal is not None and terminal.in_force else None
        return None if contact is None or contact.host == PROVIDER else Binding(contact, inf)

    def _check_registered(self, answer: Message) -> None:
        """
        :raises RegistrationFailed: the resolver refused
        :raises ServiceUnavailable: the answer is of no use
        """
        if answer.statement == REGISTRATION_FAILED:
            raise RegistrationFailed(answer.get("Cause") or "")
        if answer.statement != REGISTRATION_COMPLETED:
            raise self.link.unexpected(answer)

    async def _ask(self, identifier: str, message: Message, *, undo: bool | None = None) -> Message:
        """Ask, and wait for the answer: a second, the wait for the link included.

        :param undo: the message is a change. It may have been made although no answer comes: then
            undo it by a withdrawal (true), or by telling again what holds (false).
        :raises ServiceUnavailable: there is no answer
        """
        link = self.link
        if len(link.questions) >= QUESTIONS_MOST:
            raise ServiceUnavailable
        question = link.open_question()
        sent = False
        try:
            dialogue = link.dialogue
            if dialogue is None:
                question.waiting = connecting = link.client.wait()
                dialogue = await connecting
            self.replication.tell_first(dialogue, identifier)
            sent = True
            question.waiting = answering = link.send(dialogue, message)
            return await answering
        except (CancelledError, ConnectionLost):
            if sent and undo is not None:
                self.replication.owe(identifier, undo=undo)
            raise ServiceUnavailable from None
        finally:
            link.questions.discard(question)

    def _binding(self, identifier: str, answer: Message) -> Binding:
        """The contact in an answer, validated as any other (I12)."""
        fields = answer.fields
        terminal = self._terminals.get(identifier)
        contact = None if terminal is None else terminal.contact
        if (
            contact is not None
            and contact.host == fields.get("Callee Address")
            and str(contact.port) == fields.get("Callee Port")
        ):
            return Binding(contact, inf)  # its connection is open: we know that best
        try:
            name = parse_domain(fields["Callee Address"])
            if name is None or name == PROVIDER:
                host, origin = str(routable_ip(fields["Callee Address"])), None
            else:
                host, origin = name, Origin(str(parse_ip(fields["Source"])))
            port = int(fields["Callee Port"])
            expires = int(fields["Expires"])
        except (KeyError, AddressRefused):
            raise self.link.unexpected(answer) from None
        now = self._clock.seconds()
        contact = Contact(host, port, now, expires, "Dial" in fields, origin)
        return Binding(contact, now + expires)
