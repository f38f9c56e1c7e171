"""A terminal's connection to its mediator: what it asks there, and what the mediator says.

Whatever changes a terminal comes in here and nowhere else (I26): the terminal itself has opened
this connection, to the mediator that it is configured with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from socket import SO_REUSEADDR, SOL_SOCKET, socket
from typing import Final, Protocol

from twisted.internet.defer import CancelledError, Deferred, TimeoutError, fail
from twisted.internet.endpoints import connectProtocol
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.python.failure import Failure
from zope.interface import implementer

from broker.interfaces import IOutsideView
from broker.messages.errors import BadRequest, ServiceUnavailable, refusal_in
from broker.messages.framing import Body
from broker.messages.grammar import FIELDS, NOTIFY, QUERY, REGISTER, REQUEST
from broker.messages.message import Malformed, Message
from broker.messages.statements import (
    ACCEPT,
    ADDRESS,
    BEGIN,
    DISCLOSURES,
    NOTHING_DISCLOSED,
    PERMISSION_DENIED,
    PERMITS,
    REGISTRATION_COMPLETED,
    REQUEST_ACCEPTED,
    STATUS,
    STATUS_ACCEPTABLE,
    STATUS_BUSY,
    SUPERSEDED,
    TERMINATE,
)
from broker.net.connection import PeerConnection
from broker.net.dialogue import Dialogue, Request
from broker.net.hub import ConnectionHub, Trace
from broker.net.tls.transport import is_encrypted
from broker.tables.address_policy import parse_ip
from broker.tables.consent_lists import NONE_ACCEPTED, ConsentLists
from broker.tables.disclosures import Disclosure, format_time, parse_line
from broker.tables.locations import AddressRefused
from broker.tables.permits import as_edits
from broker.terminal.errors import CannotLogIn
from broker.terminal.registration.notices import (
    ConnectBackRequest,
    PendingCall,
    parse_call_notice,
    parse_connect_back_request,
)

#: Seconds that the mediator may take to answer.
ANSWER_TIMEOUT: Final = 15.0
#: Seconds that an application may take to give its lists: no mediator waits longer.
CONSENT_TIMEOUT: Final = 30.0
#: A list of disclosures ends with the page that makes it this long.
DISCLOSURES_MOST: Final = 10_000
#: Fields without which a call cannot be made.
_CREDENTIALS: Final = (
    "Callee Address",
    "Callee Port",
    "Password",
    "Encrypt Key",
    "Session",
    "Reply Password",
)
#: Fields without which a callee that connects to us cannot be recognized.
_CONNECT_BACK: Final = ("Session", "Encrypt Key", "Reply Password")

NOT_VALID: Final = "the mediator's answer is not valid"
NOT_FOR_TERMINALS: Final = "a terminal does not take such a request"
SECRET_IN_CLEAR: Final = "a secret would be sent to another machine in clear text"


class MediatorEvents(Protocol):
    """What the mediator asks of a terminal, and tells it."""

    def acceptable(self) -> bool:
        """Whether a call can be taken now (fig. 17)."""

    async def consent_lists(self) -> ConsentLists:
        """The callers that the terminal accepts, and those that it refuses (C3)."""
        ...

    def call_announced(self, client: MediatorClient, call: PendingCall) -> None:
        """A call will come (fig. 5e)."""

    async def admits_dial_back(self, client: MediatorClient, request: ConnectBackRequest) -> bool:
        """Whether the terminal connects to a caller that shows a call password (D7)."""
        ...

    def dial_back(self, request: ConnectBackRequest) -> None:
        """The mediator has been told that the terminal connects: it must do so now."""

    def session_terminated(self, session: str, how: str | None = None) -> None:
        """A session is void, or must end.

        :param how: how it has ended, where the callee has reported that
        """

    def superseded(self) -> None:
        """Another connection has registered as this terminal, and is the active one now."""

    def mediator_lost(self, client: MediatorClient, reason: Failure) -> None:
        """The connection is closed."""


class NullEvents:
    """For a connection that only asks: it takes no call, and ignores what it hears."""

    def acceptable(self) -> bool:
        """It takes no call."""
        return False

    async def consent_lists(self) -> ConsentLists:
        """It accepts no caller."""
        return NONE_ACCEPTED

    def call_announced(self, client: MediatorClient, call: PendingCall) -> None:
        """It takes no call."""

    async def admits_dial_back(self, client: MediatorClient, request: ConnectBackRequest) -> bool:
        """It connects to no caller."""
        return False

    def dial_back(self, request: ConnectBackRequest) -> None:
        """Never happens: it has not said that it would."""

    def session_terminated(self, session: str, how: str | None = None) -> None:
        """It has no session."""

    def superseded(self) -> None:
        """It has registered nothing."""

    def mediator_lost(self, client: MediatorClient, reason: Failure) -> None:
        """Open requests fail by themselves."""


@implementer(IOutsideView)
class MediatorClient(Dialogue):
    """One connection to the mediator, as one identifier.

    :ivar identifier: what the terminal acts as; after a login by a name, the identifier that the
        mediator has given instead
    :ivar events: acts on what the mediator says
    :ivar gone: fires with ``None`` when the connection is closed
    :ivar heard: when the last message arrived, in seconds of the clock
    """

    __slots__ = ("_allow_clear_text", "_clock", "events", "gone", "heard", "identifier")

    def __init__(
        self,
        stream: PeerConnection,
        clock: IReactorTime,
        identifier: str,
        events: MediatorEvents,
        *,
        allow_clear_text: bool = False,
    ) -> None:
        """
        :param allow_clear_text: whether secrets may be sent to another machine in clear text
        """
        super().__init__(stream, transactions=True)
        self._allow_clear_text = allow_clear_text
        self.identifier = identifier
        self.gone: Deferred[None] = Deferred()
        self.heard = clock.seconds()
        self._clock = clock
        self.events = events

    # What a terminal asks.

    def register(
        self,
        *,
        edits: Sequence[str] = (),
        reject: Sequence[str] = (),
        policy: str | None = None,
        name: str | None = None,
        address: str | None = None,
        port: int | None = None,
        expires: int | None = None,
        password: str | None = None,
        token: str | None = None,
        udp: bool = False,
        local: tuple[str, int] | None = None,
        seen: bool = False,
    ) -> Deferred[Message]:
        """Register permits, or where the terminal is, or both; or only who it is.

        With a password, or with the token of an earlier login, it also logs in: the first message
        of a connection does, where the mediator requires it. The answer then brings a ``Token``
        for the next time.

        :param edits: of the list of permits: ``'Create Ib,If'``, ``'Add Ic'``, ``'Delete If'``,
            in order
        :param reject: edits of the list of refused callers
        :param policy: the call policy: ``'List'``, ``'Ask'`` or ``'Password'``
        :param name: a second name, by which it may be called
        :param expires: seconds for which the address is valid
        :param udp: ask for a key to register by UDP with, which the answer then brings (D1)
        :param local: where the terminal listens in its own network, for callers in that network
        :param seen: callers may learn the address that this connection comes from
        :return: fires with the answer; fails with a ``Refused``, or with the connection;
            ``CannotLogIn`` where others could read the password, token or key: then nothing was
            sent (I25)
        :raises ValueError: one of these cannot be written in a message
        """
        message = Message(REGISTER, Identifier=self.identifier)
        secrets = {"Password": password, "Token": token, "UDP": "Yes" if udp else None}
        if _set_fields(message, secrets) and not self.is_private:
            return fail(CannotLogIn(SECRET_IN_CLEAR))
        contact = {
            "Address": address,
            "Port": port,
            "Expires": expires,
            "Policy": policy,
            "Name": name,
            "Local": None if local is None else f"{local[0]} {local[1]}",
            "Seen": "Yes" if seen else None,
        }
        _set_fields(message, contact)
        for field, changes in (("Accept", edits), ("Reject", reject)):
            if changes:
                message.fields[field] = "\n".join(_field(field, edit) for edit in changes)
        return self._ask(message).addCallback(self._registered)

    def _registered(self, answer: Message) -> Message:
        if answer.statement != REGISTRATION_COMPLETED:
            raise BadRequest(NOT_VALID)
        self._adopt_identifier(answer)
        return answer

    def accepted(self) -> Deferred[list[str]]:
        """The terminal's own permits, as the mediator has them; fails like ``register``."""

        def read(answer: Message) -> list[str]:
            names: list[str] = []
            for edit in answer.edits("Accept"):
                _, _, rest = edit.partition(" ")
                names.extend(rest.split(",") if rest else ())
            return names

        return self._ask(Message(QUERY, PERMITS, Identifier=self.identifier)).addCallback(read)

    def disclosures(self, before: int | None = None) -> Deferred[list[Disclosure]]:
        """Who has received this terminal's address, the newest first.

        About ``DISCLOSURES_MOST``; for older ones, ask again with the time of the last one as
        ``before``.

        :param before: only disclosures earlier than this, in microseconds since 1970
        :return: fails like ``register``
        :raises OverflowError: ``before`` cannot be written as a time
        """
        earlier = None if before is None else format_time(before)

        async def walk(earlier: str | None) -> list[Disclosure]:
            found: list[Disclosure] = []
            while len(found) < DISCLOSURES_MOST:
                question = Message(QUERY, DISCLOSURES, Identifier=self.identifier)
                if earlier is not None:
                    question.fields["Before"] = earlier
                page = self._read_page(await self._ask(question))
                if not page:
                    break
                last = format_time(page[-1].at)
                if earlier is not None and last >= earlier:  # else this would never end
                    raise BadRequest(NOT_VALID)
                found += page
                earlier = last
            return found

        return Deferred.fromCoroutine(walk(earlier))

    def _read_page(self, answer: Message) -> list[Disclosure]:
        if answer.statement == NOTHING_DISCLOSED:
            return []
        lines = answer.get("Disclosed")
        if lines is None:
            raise BadRequest(NOT_VALID)
        try:
            return [parse_line(self.identifier, line) for line in lines.split("\n")]
        except ValueError as error:
            raise BadRequest(f"{NOT_VALID}: {error}") from None

    def query(
        self, callee: str, *, seen: bool = False, back: int | None = None
    ) -> Deferred[Message]:
        """Ask for a callee (S1101).

        :param seen: the callee may learn the address that this connection comes from, if it allows
            the same
        :param back: the port at which the callee can connect to us, at the address we are seen at
        :return: fires with the caller's credentials (fig. 5d); fails like ``register``
        :raises ValueError: that is no identifier
        """
        message = Message(QUERY, Identifier=self.identifier, Callee=_field("Callee", callee))
        _set_fields(message, {"Seen": "Yes" if seen else None, "Back": back})
        return self._ask(message).addCallback(self._granted, _CREDENTIALS)

    def connect_back(self, callee: str, password: str, host: str, port: int) -> Deferred[Message]:
        """Ask a callee to connect to us (D3).

        :param password: the callee's call password
        :param host: the IP address at which we wait, as seen from outside
        :return: fires, once the callee has agreed, with what it is recognized by; fails like
            ``register``
        :raises ValueError: that is no identifier, no password or no address
        """
        message = Message(REQUEST, Identifier=self.identifier)
        request = {"Callee": callee, "Password": password, "Address": host, "Port": str(port)}
        _set_fields(message, request)
        if not self.is_private:
            return fail(CannotLogIn(SECRET_IN_CLEAR))
        return self._ask(message).addCallback(self._granted, _CONNECT_BACK)

    def _granted(self, answer: Message, required: Sequence[str]) -> Message:
        for name in required:
            if name not in answer.fields:
                raise BadRequest(f"the mediator's answer has no {name}")
        self._adopt_identifier(answer)
        return answer

    def outside(self, port: int | None = None) -> Deferred[tuple[str, int]]:
        """The address we are seen at, and whether a port of ours can be reached there (D10).

        :param port: the mediator connects to it, at the address that it sees
        :return: that address, and the port; fails with ``NotReached`` where no connection arrived,
            else like ``register``
        :raises ValueError: there is no such port
        """
        message = Message(QUERY, ADDRESS, Identifier=self.identifier)
        _set_fields(message, {"Port": port})

        def read(answer: Message) -> tuple[str, int]:
            try:
                host = str(parse_ip(answer.fields["Address"]))
                return host, int(answer.fields["Port"])
            except (KeyError, AddressRefused):
                raise BadRequest(NOT_VALID) from None

        return self._ask(message).addCallback(read)

    def began(self, session: str) -> None:
        """Report that a call has begun."""
        self.stream.send(Message.of(NOTIFY, {"Session": session, "": BEGIN}))

    def ended(self, session: str, how: str) -> None:
        """Report that a call has ended (S5007)."""
        self.stream.send(Message(NOTIFY, Session=session, End=how))

    @property
    def local_host(self) -> str:
        """Our own address on this connection."""
        transport = self.stream.transport
        host = getattr(transport.getHost(), "host", None) if transport is not None else None
        return str(host).partition("%")[0] if host else "127.0.0.1"

    def share_port(self) -> tuple[str, int] | None:
        """Let connections be made from the local port of this one, for hole punching.

        :return: our own address and that port; ``None`` where that is impossible, or pointless
            because the mediator is on this machine
        """
        shared = getattr(self.stream.transport, "socket", None)
        if not isinstance(shared, socket) or ip_address(self.remote_host).is_loopback:
            return None
        shared.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        host, port, *_ = shared.getsockname()
        return host, port

    @property
    def remote_host(self) -> str:
        """The mediator's address on this connection."""
        transport = self.stream.transport
        host = getattr(transport.getPeer(), "host", None) if transport is not None else None
        return str(host or "127.0.0.1")

    @property
    def is_private(self) -> bool:
        """Whether a secret may be sent: over TLS, on this machine, or where that is allowed."""
        transport = self.stream.transport
        if transport is None or self._allow_clear_text or is_encrypted(transport):
            return True
        host = getattr(transport.getPeer(), "host", None)  # a Unix socket has none
        return host is None or ip_address(host).is_loopback

    def close(self) -> None:
        """Close the connection."""
        self.stream.close()

    def _ask(self, message: Message) -> Deferred[Message]:
        """Ask, and wait for the answer; a refusal becomes the exception that it means."""
        if not self.stream.connected:
            return fail(ConnectionLost("the connection to the mediator is closed"))

        def late(failure: Failure) -> Message:
            failure.trap(TimeoutError)
            raise ServiceUnavailable("the mediator did not answer")

        def settle(answer: Message) -> Message:
            refusal = refusal_in(answer)
            if refusal is not None:
                refusal.code = int(answer.get("Code") or 0)
                raise refusal
            return answer

        answered = self.ask(message).addTimeout(ANSWER_TIMEOUT, self._clock)
        return answered.addErrback(late).addCallback(settle)

    def _adopt_identifier(self, answer: Message) -> None:
        """The terminal may have used a name: the mediator gives the identifier for it (C1)."""
        self.identifier = answer.get("Identifier") or self.identifier

    # What the mediator says.

    def message_received(self, message: Message) -> None:
        """The mediator asks for the status, answers, or notifies."""
        self.heard = self._clock.seconds()
        if message.verb == QUERY and message.statement == STATUS:
            status = STATUS_ACCEPTABLE if self.events.acceptable() else STATUS_BUSY
            self.open_request(message).reply(status, code=200)
        elif message.verb == QUERY and message.statement == ACCEPT:
            self._send_lists(self.open_request(message))
        elif message.verb == REQUEST and "Caller ID" in message.fields:
            self._decide_dial_back(self.open_request(message))
        elif message.verb != NOTIFY:
            self.open_request(message).reply(BadRequest.statement, {"Cause": NOT_FOR_TERMINALS})
        elif message.transaction is None:
            self._notified(message)
        else:
            self.answered(message)

    def _send_lists(self, request: Request) -> None:
        """Send the whole lists (S4003): the mediator compares, and does not say who calls."""

        def reply(lists: ConsentLists) -> None:
            fields = {"Accept": "\n".join(as_edits(lists.accepted))}
            if lists.rejected:
                fields["Reject"] = "\n".join(as_edits(lists.rejected))
            request.work = None
            request.reply("", fields, code=200)

        def late(failure: Failure) -> ConsentLists:
            failure.trap(TimeoutError, CancelledError)
            return NONE_ACCEPTED

        lists = Deferred.fromCoroutine(self.events.consent_lists())
        request.work = lists
        lists.addTimeout(CONSENT_TIMEOUT, self._clock).addErrback(late).addCallback(reply)

    def _decide_dial_back(self, request: Request) -> None:
        """Say whether we connect to a caller, and only then do so (D7)."""
        connect_back = parse_connect_back_request(request.message, self._clock.seconds())
        if connect_back is None:
            request.reply(PERMISSION_DENIED)
            return

        def reply(admitted: bool) -> None:
            request.work = None
            if request.done:  # the connection is closed: the caller would not expect us
                return
            if admitted:
                request.reply(REQUEST_ACCEPTED, code=200)
                self.events.dial_back(connect_back)
            else:
                request.reply(PERMISSION_DENIED)

        def late(failure: Failure) -> bool:
            failure.trap(TimeoutError, CancelledError)
            return False

        admitted = Deferred.fromCoroutine(self.events.admits_dial_back(self, connect_back))
        request.work = admitted
        admitted.addTimeout(CONSENT_TIMEOUT, self._clock).addErrback(late).addCallback(reply)

    def _notified(self, message: Message) -> None:
        session = message.get("Session")
        if "Caller ID" in message.fields:
            call = parse_call_notice(message, self._clock.seconds())
            if call is not None:
                self.events.call_announced(self, call)
        elif message.statement == TERMINATE and session is not None:
            self.events.session_terminated(session, message.get("End"))
        elif message.statement == SUPERSEDED:
            self.events.superseded()

    def body_received(self, body: Body) -> None:
        """No message of a mediator has a body so far."""

    def malformed_received(self, malformed: Malformed) -> None:
        """What arrived is not a message."""
        self.malformed(malformed)

    def connection_lost(self, reason: Failure) -> None:
        """The connection is closed."""
        self.lost(reason)
        self.events.mediator_lost(self, reason)
        self.gone.callback(None)


def _set_fields(message: Message, values: Mapping[str, str | int | None]) -> bool:
    """Add those fields that have a value, in this order.

    :return: whether there was any
    :raises ValueError: a value cannot stand in its field
    """
    fields = {name: _field(name, str(value)) for name, value in values.items() if value is not None}
    message.fields.update(fields)
    return bool(fields)


def _field(name: str, value: str) -> str:
    """An application's value in the canonical form of a field.

    :raises ValueError: it cannot stand there. A line break in it would begin another field
    """
    if "\n" in value or "\r" in value:
        raise ValueError(f"{name}: has a line break")
    try:
        return FIELDS[name](value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def dial(
    clock: IReactorTime,
    endpoint: IStreamClientEndpoint,
    identifier: str,
    *,
    password: str | None = None,
    allow_clear_text: bool = False,
    events: MediatorEvents | None = None,
    trace: Trace | None = None,
) -> Deferred[MediatorClient]:
    """Connect to a mediator once, to ask something there.

    :param password: what to log in with first
    :param allow_clear_text: whether it may be sent to another machine in clear text
    :return: fires with the connection, logged in where there is a password; fails like the
        endpoint, and like ``MediatorClient.register``
    :raises ValueError: that is no identifier, or no password
    """
    identifier = _field("Identifier", identifier)
    if password is not None:
        password = _field("Password", password)
    hub = ConnectionHub.of_client(clock, trace=trace)
    stream = PeerConnection(
        hub,
        lambda stream: MediatorClient(
            stream, clock, identifier, events or NullEvents(), allow_clear_text=allow_clear_text
        ),
    )

    async def log_in() -> MediatorClient:
        connected = await connectProtocol(endpoint, stream)
        client = connected.receiver
        if not isinstance(client, MediatorClient):
            raise TypeError(client)
        if password is not None:
            try:
                await client.register(password=password)
            except BaseException:
                client.close()
                raise
        return client

    return Deferred.fromCoroutine(log_in())
