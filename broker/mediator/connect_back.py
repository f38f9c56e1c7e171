"""Connect-back: a callee learns where its caller waits, and connects to it (fig. 7c, 8a, 8c).

No list is consulted. The callee's call password is the permission, and the callee alone checks it:
here it is passed on, and neither kept nor compared. Whatever stands in the way, the caller learns
one answer, at one time: whether there is such a callee, and whether it is there, is only
for callers who know its password (I6).
"""

from __future__ import annotations

from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectionLost
from twisted.logger import Logger

from broker.mediator.attempt import CallAttempt, StillPermitted
from broker.mediator.connection import TerminalConnection
from broker.mediator.context import MediatorContext
from broker.mediator.sessions import LIFETIME, terminate
from broker.messages.errors import BadRequest, PermissionDenied, Refused
from broker.messages.grammar import DEFAULT_PORT, REQUEST
from broker.messages.message import Message, printable
from broker.messages.statements import PERMISSION_DENIED, REQUEST_ACCEPTED
from broker.net.dialogue import Request
from broker.net.peer_address import local_host_of, remote_host_of
from broker.net.timers import wait_until
from broker.tables.address_policy import parse_domain, validate_contact
from broker.tables.disclosures import CONNECT_BACK, Disclosure
from broker.tables.grants import SessionCredentials, draw_credentials
from broker.tables.locations import AddressRefused, Contact
from broker.tables.rate_limits import PASSWORD_GUESSES, RateLimiter
from broker.tables.sessions import BY_PASSWORD


class ConnectBackAttempt(CallAttempt):
    """A caller's request that its callee connect to it, by the callee's call password."""

    __slots__ = ()

    def check(self) -> str:
        """The callee must be reachable by password, and must not reject this caller (I3, C5)."""
        permits = self.context.permits
        if not permits.accepts_call_password(self.callee) or permits.rejects(
            self.callee, self.caller
        ):
            raise PermissionDenied
        return BY_PASSWORD

    def recheck(self) -> StillPermitted:
        """As ``CallAttempt.recheck``; but the callee's own address is not sent, and may change."""
        entry = self.check()
        self.check_quota()
        if self.context.connections.usable(self.callee) is not self.callee_connection:
            raise PermissionDenied
        return StillPermitted(entry)

    def moved(self, connection: TerminalConnection) -> None:
        """The callee is asked over another connection, and must connect only once (D6).

        So the session is terminated over the old connection.
        """
        old, self.callee_connection = self.callee_connection, connection
        try:
            self.recheck()
        except BaseException:
            self.callee_connection = old
            raise
        old.stream.send(terminate(self.credentials.session))

    def cancel(self) -> None:
        """The callee may be about to connect, and must not."""
        self.callee_connection.stream.send(terminate(self.credentials.session))


class ConnectBack:
    """Passes callers' requests on to callees, and their answers back.

    :ivar guesses: the passwords that callees refused in the last minute
    """

    log = Logger()

    def __init__(self, context: MediatorContext) -> None:
        self.guesses = RateLimiter(PASSWORD_GUESSES)
        self._context = context
        self._counts = context.counts
        self._in_progress: set[tuple[str, str]] = set()  # caller and callee

    async def request(self, caller: TerminalConnection, request: Request) -> None:
        """Serve one request.

        :raises BadRequest: what the caller says of itself is not valid; no callee was asked
        :raises TooManyRequests: too many of its sessions have not begun, with any callee
        :raises PermissionDenied: any other refusal, once the time to decide is over
        """
        context = self._context
        began = context.clock.seconds()
        address = self._caller_address(caller, request.message)
        callee = context.permits.canonical(request.message.fields["Callee"])
        attempt = ConnectBackAttempt(context, caller, callee, request)
        attempt.check_quota()
        try:
            await self._connect_once(attempt, address)
        except (Refused, CancelledError, ConnectionLost) as error:
            outcome = "refused" if isinstance(error, PermissionDenied) else "failed"
            self._counts[f"connect-back {outcome}"] += 1
        except Exception:
            self.log.failure(
                "{callee} could not be asked to connect back", callee=printable(callee)
            )
        else:
            self._counts["connect-backs granted"] += 1
            return
        if not request.done:  # it is, where the caller has gone
            # Every refusal takes as long as a callee may take to refuse.
            await wait_until(context.clock, began + context.settings.status_timeout)
        raise PermissionDenied

    async def _connect_once(self, attempt: ConnectBackAttempt, address: Contact) -> None:
        """One request of a caller to a callee at a time: a second one is refused."""
        pair = (attempt.caller, attempt.callee)
        if pair in self._in_progress:
            raise PermissionDenied
        self._in_progress.add(pair)
        try:
            await self._connect(attempt, address)
        finally:
            self._in_progress.discard(pair)

    async def _connect(self, attempt: ConnectBackAttempt, address: Contact) -> None:
        """Ask the callee, and tell the caller if it connects. Each refusal is raised.

        :param address: where the caller waits
        """
        ledger = self._context.disclosures
        attempt.check()  # I3
        guess = self._check_rate(attempt)  # I17
        await attempt.locate()
        await attempt.reach()  # D4, D5
        permitted = attempt.recheck()  # I1, I2
        ledger.check_room()
        credentials = attempt.credentials = draw_credentials(self._context.randomness)
        disclosure = ledger.record(
            attempt.caller, attempt.callee, address, credentials.session, CONNECT_BACK, LIFETIME
        )
        if ledger.first:
            await attempt.commit(permitted, (disclosure,))
        else:
            ledger.note(disclosure)
        may_connect = True  # as far as we know, once it is asked
        try:
            password = attempt.request.message.fields["Password"]
            answer = await attempt.ask(_to_callee(disclosure, password, credentials))  # D6, D7
            may_connect = _is_accepted(answer)
            if not may_connect:
                raise PermissionDenied
            self.guesses.refund(guess)
            if attempt.request.queued is not None:
                await attempt.request.until_next()
            permitted = attempt.recheck()  # I2
        except BaseException:
            if may_connect:
                attempt.cancel()
            raise
        attempt.tell(permitted, _to_caller(attempt.callee, credentials), None)

    def _check_rate(self, attempt: ConnectBackAttempt) -> int:
        """Count this as a wrong guess of the password, until the callee says that it is right.

        :return: the guess, for ``RateLimiter.refund``
        """
        guess = self.guesses.acquire(attempt.caller, attempt.callee, self._context.clock.seconds())
        if guess is None:
            self._counts["connect-back rate-limited"] += 1
            raise PermissionDenied
        return guess

    def _caller_address(self, caller: TerminalConnection, message: Message) -> Contact:
        """Where the caller waits, validated as an address that is registered (I12)."""
        fields = message.fields
        if "Address" not in fields:
            raise BadRequest("a REQUEST to be connected back has an Address")
        settings = self._context.settings
        port = int(fields.get("Port", DEFAULT_PORT))
        try:
            if parse_domain(fields["Address"]) is not None:
                raise AddressRefused("the Address to connect back to is an IP address")
            host = validate_contact(
                fields["Address"],
                port,
                source=remote_host_of(caller.stream),
                own=local_host_of(caller.stream),
                allowed=settings.allowed_networks,
                own_ports=settings.own_ports,
            ).host
        except AddressRefused as error:
            raise BadRequest(str(error)) from None
        return Contact(host, port, self._context.clock.seconds(), LIFETIME)


def _is_accepted(answer: Message) -> bool:
    """Whether a callee, having checked the password, says that it connects.

    :raises PermissionDenied: its answer can't be understood
    """
    if answer.statement not in {REQUEST_ACCEPTED, PERMISSION_DENIED}:
        raise PermissionDenied
    return answer.statement == REQUEST_ACCEPTED


def _to_callee(disclosure: Disclosure, password: str, credentials: SessionCredentials) -> Message:
    """Fig. 8c: who calls, by which password, and where it waits, as the ledger has recorded it."""
    return Message.of(
        REQUEST,
        {
            "Caller ID": disclosure.owner,
            "Password": password,
            "Address": disclosure.host,
            "Port": str(disclosure.port),
            "Session": credentials.session,
            "Encrypt Key": credentials.key,
            "Expires": str(disclosure.expires),
            "Reply Password": credentials.reply_password,
        },
    )


def _to_caller(callee: str, credentials: SessionCredentials) -> dict[str, str]:
    """What a caller recognizes its callee by when it connects; nothing of where that is."""
    return {
        "Session": credentials.session,
        "Encrypt Key": credentials.key,
        "Callee": callee,
        "Expires": str(LIFETIME),
        "Reply Password": credentials.reply_password,
    }
