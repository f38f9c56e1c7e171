"""Reading a registration: what it asks for, checked before anything changes."""

from __future__ import annotations

from typing import Final

from broker.mediator.auth.login import is_private
from broker.mediator.candidates import offer
from broker.mediator.connection import TerminalConnection
from broker.mediator.context import MediatorContext
from broker.mediator.permits import ListEdits
from broker.messages.errors import RegistrationFailed
from broker.messages.grammar import DEFAULT_EXPIRES, DEFAULT_PORT
from broker.net.dialogue import Request
from broker.net.peer_address import local_host_of, remote_host_of
from broker.tables.address_policy import OWN_ADDRESS, validate_contact
from broker.tables.locations import AddressRefused, CandidateOffer, Contact

#: Fields of the protocol that this server does not serve: refused, since the terminal would rely
#: on them if they were ignored.
_NOT_SERVED: Final = ("Control", "Public Key", "Role")
#: Fields that offer other candidates.
_CANDIDATE_FIELDS: Final = frozenset(("Local", "Seen"))


class RegistrationPlan:
    """A registration that is checked and not yet in force.

    :ivar identifier: that of the terminal
    :ivar edits: of its lists
    :ivar change: what the edits make of the lists, where that holds until their turn
    :ivar contact: its address, if it registers one; one that expires at once withdraws it
    :ivar offer: the other candidates that it offers
    :ivar token: a new resume token, where this registration has logged the terminal in
    """

    __slots__ = (
        "change",
        "contact",
        "edits",
        "fields",
        "identifier",
        "offer",
        "peer",
        "request",
        "token",
    )

    def __init__(
        self,
        context: MediatorContext,
        peer: TerminalConnection,
        request: Request,
        token: str | None,
    ) -> None:
        """
        :raises RegistrationFailed: what it asks for can't be
        """
        message = request.message
        self.peer = peer
        self.request = request
        self.token = token
        self.identifier = peer.identifier
        self.fields = fields = message.fields
        for name in _NOT_SERVED:
            if name in fields:
                raise RegistrationFailed(f"{name} is not offered by this server")
        edits = ListEdits(message.edits("Accept"), message.edits("Reject"), fields.get("Policy"))
        self.edits = edits
        try:
            self.contact = self._read_contact(context)
            self.offer = self._read_offer(context)
            if "UDP" in fields:
                self._check_udp(context)
        except AddressRefused as error:
            raise RegistrationFailed(str(error)) from None
        self.change = context.permits.prepare(self.identifier, edits) if edits else None
        if self.contact is not None or "UDP" in fields or self._waits(context):
            # Checked, but what the edits make of the lists is worked out again as they are stored:
            # while the resolver is waited for, a name may come to mean an identifier, and limits
            # count from when the list is stored.
            self.change = None

    def _waits(self, context: MediatorContext) -> bool:
        """Whether other changes come before this one."""
        return "Name" in self.fields or context.permits.is_changing(self.identifier)

    @property
    def wants_key(self) -> bool:
        """Whether the terminal asks for a key, to register by UDP with it."""
        return "UDP" in self.fields

    @property
    def port(self) -> int:
        """The port at which the terminal takes calls."""
        return int(self.fields.get("Port", DEFAULT_PORT))

    @property
    def expires(self) -> int:
        """The seconds after which what is registered expires; 0 withdraws it."""
        return int(self.fields.get("Expires", DEFAULT_EXPIRES))

    def _read_contact(self, context: MediatorContext) -> Contact | None:
        fields, expires, now = self.fields, self.expires, context.clock.seconds()
        host = fields.get("Address")
        if host is None:
            if "UDP" in fields:
                return None  # the terminal is where its datagrams come from
            if "Port" in fields or ("Expires" in fields and expires):
                raise AddressRefused("Port and Expires need an Address")
            return None if expires else Contact("", 0, now, 0)
        port = self.port
        host, dialable, origin = validate_contact(
            host,
            port,
            source=remote_host_of(self.peer.stream),
            own=local_host_of(self.peer.stream),
            allowed=context.settings.allowed_networks,
            own_ports=context.settings.own_ports,
        )
        return Contact(host, port, now, expires, dialable, origin)

    def _read_offer(self, context: MediatorContext) -> CandidateOffer | None:
        fields = self.fields
        if _CANDIDATE_FIELDS.isdisjoint(fields):
            return None  # as most registrations, which are faster for it
        if "Address" not in fields and "UDP" not in fields:
            raise AddressRefused("Local and Seen need an Address or UDP")
        return offer(self.peer, fields, context.clock.seconds(), context.settings.own_ports)

    def _check_udp(self, context: MediatorContext) -> None:
        """See that the terminal may be given a key (D1)."""
        settings = context.settings
        if self.request.bare:
            raise RegistrationFailed("UDP needs a Transaction: the key comes in its answer")
        if not settings.allow_clear_text and not is_private(self.peer):
            raise RegistrationFailed("no key is sent in clear text", code=403)
        if self.fields.get("Expires") == "0":
            raise RegistrationFailed("UDP does not go with Expires:0")
        if self.port in settings.own_ports:
            raise AddressRefused(OWN_ADDRESS)
