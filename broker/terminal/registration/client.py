"""A terminal's connection to its mediator: what it asks there, and what it is told.

What changes a terminal comes in here and nowhere else (I26): the terminal itself has opened this
connection to the mediator that it is configured with.
"""

from __future__ import annotations

from collections.abc import Sequence
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

#: Seconds for which the mediator may take to answer.
ANSWER_TIMEOUT: Final = 15.0
#: Seconds for which whoever says whom the terminal accepts may take: the mediator waits no longer.
CONSENT_TIMEOUT: Final = 30.0
#: Where a question for disclosures ends, with the page that comes to so many.
DISCLOSURES_MOST: Final = 10_000
#: What a call can't be made without.
_CREDENTIALS: Final = (
    "Callee Address",
    "Callee Port",
    "Password",
    "Encrypt Key",
    "Session",
    "Reply Password",
)


#: What a callee that comes can't be known by without.
_COMING: Final = ("Session", "Encrypt Key", "Reply Password")


class MediatorEvents(Protocol):
    """Who acts on what the mediator says."""

    def acceptable(self) -> bool:
        """Whether a call can be taken now (fig. 17)."""

    async def lists(self) -> ConsentLists:
        """Whom the terminal accepts, and whom it refuses (C3)."""
        ...

    def announced(self, line: MediatorClient, call: PendingCall) -> None:
        """A call will come (fig. 5e)."""

    async def comes(self, line: MediatorClient, wanted: ConnectBackRequest) -> bool:
        """Whether the terminal comes to a caller that shows a call password (D7)."""
        ...

    def come(self, wanted: ConnectBackRequest) -> None:
        """It has said that it does."""

    def terminated(self, session: str, how: str | None = None) -> None:
        """A session is void, or must end.

        :param how: how it has ended, where that is its callee's word
        """

    def superseded(self) -> None:
        """The terminal is reached elsewhere from now on."""

    def line_lost(self, line: MediatorClient, reason: Failure) -> None:
        """The connection is gone."""


class NullEvents:
    """For a connection that only asks: takes no call."""

    def acceptable(self) -> bool:
        """Nothing is listening here."""
        return False

    async def lists(self) -> ConsentLists:
        """Nobody is accepted here."""
        return NONE_ACCEPTED

    def announced(self, line: MediatorClient, call: PendingCall) -> None:
        """Nobody waits for it."""

    async def comes(self, line: MediatorClient, wanted: ConnectBackRequest) -> bool:
        """There is nobody who could."""
        return False

    def come(self, wanted: ConnectBackRequest) -> None:
        """It has not said so."""

    def terminated(self, session: str, how: str | None = None) -> None:
        """Nothing goes on here."""

    def superseded(self) -> None:
        """Nothing was reached here."""

    def line_lost(self, line: MediatorClient, reason: Failure) -> None:
        """Whoever asked has been told by the failure of the answer."""


@implementer(IOutsideView)
class MediatorClient(Dialogue):
    """One connection to the mediator, as one identifier.

    :ivar identifier: whom the terminal acts as; where it has called itself by another name, what
        the mediator has told it instead
    :ivar gone: fires with ``None`` when the connection is gone
    :ivar heard: when the last message came, in seconds of the clock
    :ivar told: who acts on what the mediator says
    """

    __slots__ = ("_allow_clear_text", "_clock", "gone", "heard", "identifier", "told")

    def __init__(
        self,
        stream: PeerConnection,
        clock: IReactorTime,
        identifier: str,
        told: MediatorEvents,
        *,
        allow_clear_text: bool = False,
    ) -> None:
        """
        :param allow_clear_text: whether a password or a token may go to another machine in clear
        """
        super().__init__(stream, transactions=True)
        self._allow_clear_text = allow_clear_text
        self.identifier = identifier
        self.gone: Deferred[None] = Deferred()
        self.heard = clock.seconds()
        self._clock = clock
        self.told = told

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

        With a password, or with the token of an earlier login, it logs in besides: the first
        message of a connection does, where the mediator asks for it. The answer then brings a
        ``Token`` for the next time.

        :param edits: ``'Create Ib,If'``, ``'Add Ic'``, ``'Delete If'``, in order
        :param reject: the same, of the list of those who are refused
        :param policy: how consent is had: ``'List'``, ``'Ask'`` or ``'Password'``
        :param name: a further name, as which it may be called
        :param udp: ask for a key to register by UDP with, which the answer then brings (D1)
        :param local: where the terminal listens in its own network, for callers who are in it too
        :param seen: callers may be told where this connection is seen to come from
        :return: fires with the answer; fails with a ``Refused``, or with the connection;
            ``CannotLogIn`` where others could read the password or the token, of which nothing
            has left then (I25)
        :raises ValueError: one of these can't be said
        """
        message = Message(REGISTER, Identifier=self.identifier)
        if password is not None:
            message.fields["Password"] = _said("Password", password)
        if token is not None:
            message.fields["Token"] = _said("Token", token)
        secret = password is not None or token is not None or udp
        if secret and not self.is_private:
            return fail(CannotLogIn("what proves who it is would leave this machine in clear text"))
        if udp:
            message.fields["UDP"] = "Yes"
        said = {
            "Address": address,
            "Port": port,
            "Expires": expires,
            "Policy": policy,
            "Name": name,
            "Local": None if local is None else f"{local[0]} {local[1]}",
            "Seen": "Yes" if seen else None,
        }
        for field, value in said.items():
            if value is not None:
                message.fields[field] = _said(field, str(value))
        for field, changes in (("Accept", edits), ("Reject", reject)):
            if changes:
                message.fields[field] = "\n".join(_said(field, edit) for edit in changes)

        def check(answer: Message) -> Message:
            if answer.statement != REGISTRATION_COMPLETED:
                raise BadRequest("the mediator's answer makes no sense")
            self._called(answer)
            return answer

        return self._asked(message).addCallback(check)

    def accepted(self) -> Deferred[list[str]]:
        """The terminal's own permits, as the mediator has them; fails as ``register`` does."""

        def read(answer: Message) -> list[str]:
            names: list[str] = []
            for edit in answer.edits("Accept"):
                _, _, rest = edit.partition(" ")
                names.extend(rest.split(",") if rest else ())
            return names

        return self._asked(Message(QUERY, PERMITS, Identifier=self.identifier)).addCallback(read)

    def disclosures(self, before: int | None = None) -> Deferred[list[Disclosure]]:
        """Who was told where this terminal is, the newest first; ``DISCLOSURES_MOST`` or so.

        What is older still is asked for with the time of the last one as ``before``.

        :param before: only what was told earlier than this, in microseconds since 1970
        :return: fails as ``register`` does
        :raises OverflowError: ``before`` can't be told
        """
        earlier = None if before is None else format_time(before)

        async def walk(earlier: str | None) -> list[Disclosure]:
            told: list[Disclosure] = []
            while len(told) < DISCLOSURES_MOST:
                question = Message(QUERY, DISCLOSURES, Identifier=self.identifier)
                if earlier is not None:
                    question.fields["Before"] = earlier
                page = self._read_page(await self._asked(question))
                if not page:
                    break
                last = format_time(page[-1].at)
                if earlier is not None and last >= earlier:  # else it would go on for ever
                    raise BadRequest("the mediator's answer makes no sense")
                told += page
                earlier = last
            return told

        return Deferred.fromCoroutine(walk(earlier))

    def _read_page(self, answer: Message) -> list[Disclosure]:
        if answer.statement == NOTHING_DISCLOSED:
            return []
        lines = answer.get("Disclosed")
        if lines is None:
            raise BadRequest("the mediator's answer makes no sense")
        try:
            return [parse_line(self.identifier, line) for line in lines.split("\n")]
        except ValueError as error:
            raise BadRequest(f"the mediator told of no disclosure: {error}") from None

    def query(
        self, callee: str, *, seen: bool = False, back: int | None = None
    ) -> Deferred[Message]:
        """Ask for a callee (S1101).

        :param seen: it may be told where this connection is seen to come from, if it says the same
        :param back: the port at which it can come to us, at the address we are seen at
        :return: fires with the caller's credentials (fig. 5d); fails as ``register`` does
        :raises ValueError: nobody can be called that
        """

        def check(answer: Message) -> Message:
            for name in _CREDENTIALS:
                if name not in answer.fields:
                    raise BadRequest(f"the mediator's answer has no {name}")
            self._called(answer)
            return answer

        message = Message(QUERY, Identifier=self.identifier, Callee=_said("Callee", callee))
        if seen:
            message.fields["Seen"] = "Yes"
        if back is not None:
            message.fields["Back"] = _said("Back", str(back))
        return self._asked(message).addCallback(check)

    def connect_back(self, callee: str, password: str, host: str, port: int) -> Deferred[Message]:
        """Ask a callee to connect to us (D3).

        :param password: the callee's call password
        :param host: the IP address at which we wait, as it is seen from outside
        :return: fires, once the callee has said that it comes, with what it is known by; fails as
            ``register`` does
        :raises ValueError: nobody can be called that, or that can be no password or no address
        """
        message = Message(REQUEST, Identifier=self.identifier)
        said = {"Callee": callee, "Password": password, "Address": host, "Port": str(port)}
        for field, value in said.items():
            message.fields[field] = _said(field, value)
        if not self.is_private:
            return fail(CannotLogIn("the call password would leave this machine in clear text"))

        def check(answer: Message) -> Message:
            for name in _COMING:
                if name not in answer.fields:
                    raise BadRequest(f"the mediator's answer has no {name}")
            self._called(answer)
            return answer

        return self._asked(message).addCallback(check)

    def outside(self, port: int | None = None) -> Deferred[tuple[str, int]]:
        """Where we are seen to come from, and whether a port of ours can be reached there (D10).

        :param port: the mediator tries it, at the address that it sees
        :return: that address, and the port; fails with ``NotReached`` where nobody came to it, else
            as ``register`` does
        :raises ValueError: there is no such port
        """
        message = Message(QUERY, ADDRESS, Identifier=self.identifier)
        if port is not None:
            message.fields["Port"] = _said("Port", str(port))

        def read(answer: Message) -> tuple[str, int]:
            try:
                host = str(parse_ip(answer.fields["Address"]))
                return host, int(answer.fields["Port"])
            except (KeyError, AddressRefused):
                raise BadRequest("the mediator's answer makes no sense") from None

        return self._asked(message).addCallback(read)

    def began(self, session: str) -> None:
        """Report that a call has begun."""
        self.stream.send(Message.of(NOTIFY, {"Session": session, "": BEGIN}))

    def ended(self, session: str, how: str) -> None:
        """Report that a call is over (S5007)."""
        self.stream.send(Message(NOTIFY, Session=session, End=how))

    @property
    def local_host(self) -> str:
        """Our own address on this connection."""
        transport = self.stream.transport
        host = getattr(transport.getHost(), "host", None) if transport is not None else None
        return str(host).partition("%")[0] if host else "127.0.0.1"

    def share_port(self) -> tuple[str, int] | None:
        """Let connections be made from the very port of this one, for ``SimultaneousEndpoint``.

        :return: our own address and that port, unless it can't be or is of no use: within this
            machine
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
        """Whether a secret may be sent: over TLS, within this machine, or where that is allowed."""
        transport = self.stream.transport
        if transport is None or self._allow_clear_text or is_encrypted(transport):
            return True
        host = getattr(transport.getPeer(), "host", None)  # a socket of the file system has none
        return host is None or ip_address(host).is_loopback

    def close(self) -> None:
        """Close the connection."""
        self.stream.close()

    def _asked(self, message: Message) -> Deferred[Message]:
        if not self.stream.connected:
            return fail(ConnectionLost("the connection to the mediator is gone"))

        def late(failure: Failure) -> Message:
            failure.trap(TimeoutError)
            raise ServiceUnavailable("the mediator did not answer")

        def settle(answer: Message) -> Message:
            refusal = refusal_in(answer)
            if refusal is not None:
                refusal.code = int(answer.get("Code") or 0)
                raise refusal
            return answer

        asked = self.ask(message).addTimeout(ANSWER_TIMEOUT, self._clock)
        return asked.addErrback(late).addCallback(settle)

    def _called(self, answer: Message) -> None:
        """The mediator may know the terminal, by the name it gave, as another (C1)."""
        self.identifier = answer.get("Identifier") or self.identifier

    # What it is told.

    def message_received(self, message: Message) -> None:
        """The mediator asks for the status, answers, or tells something."""
        self.heard = self._clock.seconds()
        if message.verb == QUERY and message.statement == STATUS:
            status = STATUS_ACCEPTABLE if self.told.acceptable() else STATUS_BUSY
            self.asked(message).reply(status, code=200)
        elif message.verb == QUERY and message.statement == ACCEPT:
            self._tell_lists(self.asked(message))
        elif message.verb == REQUEST and "Caller ID" in message.fields:
            self._tell_whether_it_comes(self.asked(message))
        elif message.verb != NOTIFY:
            self.asked(message).reply(BadRequest.statement, {"Cause": "a terminal takes no such"})
        elif message.transaction is None:
            self._notified(message)
        else:
            self.answered(message)

    def _tell_lists(self, request: Request) -> None:
        """Say whom we accept (S4003), whole: it is the mediator that compares."""

        def tell(lists: ConsentLists) -> None:
            fields = {"Accept": "\n".join(as_edits(lists.accepted))}
            if lists.rejected:
                fields["Reject"] = "\n".join(as_edits(lists.rejected))
            request.abandoned = None
            request.reply("", fields, code=200)

        def late(failure: Failure) -> ConsentLists:
            failure.trap(TimeoutError, CancelledError)
            return NONE_ACCEPTED

        asked = Deferred.fromCoroutine(self.told.lists())
        request.abandoned = asked.cancel
        asked.addTimeout(CONSENT_TIMEOUT, self._clock).addErrback(late).addCallback(tell)

    def _tell_whether_it_comes(self, request: Request) -> None:
        """Say whether we come to a caller, and only then go (D7)."""
        wanted = parse_connect_back_request(request.message, self._clock.seconds())
        if wanted is None:
            request.reply(PERMISSION_DENIED)
            return

        def tell(comes: bool) -> None:
            request.abandoned = None
            if request.done:  # the line is gone, and nobody would know
                return
            if comes:
                request.reply(REQUEST_ACCEPTED, code=200)
                self.told.come(wanted)
            else:
                request.reply(PERMISSION_DENIED)

        def late(failure: Failure) -> bool:
            failure.trap(TimeoutError, CancelledError)
            return False

        asked = Deferred.fromCoroutine(self.told.comes(self, wanted))
        request.abandoned = asked.cancel
        asked.addTimeout(CONSENT_TIMEOUT, self._clock).addErrback(late).addCallback(tell)

    def _notified(self, message: Message) -> None:
        session = message.get("Session")
        if "Caller ID" in message.fields:
            call = parse_call_notice(message, self._clock.seconds())
            if call is not None:
                self.told.announced(self, call)
        elif message.statement == TERMINATE and session is not None:
            self.told.terminated(session, message.get("End"))
        elif message.statement == SUPERSEDED:
            self.told.superseded()

    def body_received(self, body: Body) -> None:
        """Nothing that a mediator says so far has a body."""

    def malformed_received(self, malformed: Malformed) -> None:
        """What came is no message."""
        self.malformed(malformed)

    def connection_lost(self, reason: Failure) -> None:
        """The connection is gone."""
        self.lost(reason)
        self.told.line_lost(self, reason)
        self.gone.callback(None)


def _said(name: str, value: str) -> str:
    """An application's value as it may stand in a field; what holds a line's end would be more.

    :raises ValueError: it can't stand there
    """
    if "\n" in value or "\r" in value:
        raise ValueError(f"{name}: the end of a line")
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
    told: MediatorEvents | None = None,
    trace: Trace | None = None,
) -> Deferred[MediatorClient]:
    """Connect to a mediator once, to ask something there.

    :param password: what to log in with first
    :param allow_clear_text: whether it may go to another machine in clear
    :return: fires with the line, which is logged in where there is a password; fails as the
        endpoint does, and as ``MediatorClient.register`` does
    :raises ValueError: nobody can be called that, or that can be no password
    """
    identifier = _said("Identifier", identifier)
    if password is not None:
        password = _said("Password", password)
    exchange = ConnectionHub.of_client(clock, trace=trace)
    stream = PeerConnection(
        exchange,
        lambda stream: MediatorClient(
            stream, clock, identifier, told or NullEvents(), allow_clear_text=allow_clear_text
        ),
    )

    async def log_in() -> MediatorClient:
        connected = await connectProtocol(endpoint, stream)
        line = connected.receiver
        if not isinstance(line, MediatorClient):
            raise TypeError(line)
        if password is not None:
            try:
                await line.register(password=password)
            except BaseException:
                line.close()
                raise
        return line

    return Deferred.fromCoroutine(log_in())
