"""Connect-back: a callee is told where its caller waits, and comes to it (fig. 7c, 8a, 8c, D3–D6).

No list is consulted. The callee's call password is the permission, and the callee alone checks it:
here it is passed on, and neither kept nor compared. Whatever stands in the way, the caller learns
one thing, at one time: whether there is such a callee, and whether it is there, is for those who
know its password (I6).
"""

from __future__ import annotations

from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectionLost
from twisted.logger import Logger

from broker.mediator.connection import Peer, canonical_identifier_field
from broker.mediator.connections import locate
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
from broker.tables.grants import SessionCredentials, make_grant
from broker.tables.locations import AddressRefused, Contact
from broker.tables.rate_limits import PASSWORD_GUESSES, RateLimiter
from broker.tables.sessions import BY_PASSWORD


class ConnectBack:
    """Hands callers' requests to callees, and their answers back.

    :ivar guesses: the passwords that callees have refused of late
    """

    log = Logger()

    def __init__(self, context: MediatorContext) -> None:
        self.guesses = RateLimiter(PASSWORD_GUESSES)
        self._clock = context.clock
        self._permits = context.permits
        self._resolver = context.resolver
        self._reach = context.connections
        self._sessions = context.sessions
        self._ledger = context.disclosures
        self._counts = context.counts
        self._randomness = context.randomness
        self._patience = context.settings.status_timeout
        self._allowed = context.settings.allowed_networks
        self._own_ports = context.settings.own_ports
        self._under_way: set[tuple[str, str]] = set()

    async def request(self, caller: Peer, request: Request) -> None:
        """Serve one request.

        :raises BadRequest: what the caller says of itself is not good; nobody has been asked
        :raises TooManyRequests: it has too many sessions that have not begun, whoever the callee
        :raises PermissionDenied: any other refusal, once the time to decide is over
        """
        begun = self._clock.seconds()
        where = self._where(caller, request.message)
        identifier = caller.identifier or ""
        callee = self._permits.canonical(request.message.fields["Callee"])
        self._sessions.check_session_quota(identifier, callee)
        pair = (identifier, callee)
        try:
            if pair in self._under_way:
                raise PermissionDenied
            self._under_way.add(pair)
            try:
                await self._connect(caller, callee, request, where)
            finally:
                self._under_way.discard(pair)
        except (Refused, CancelledError, ConnectionLost) as error:
            why = "refused" if isinstance(error, PermissionDenied) else "not had"
            self._counts[f"connect-back {why}"] += 1
        except Exception:
            self.log.failure(
                "{callee} could not be asked to connect back", callee=printable(callee)
            )
        else:
            return
        if not request.done:  # it is, where the caller has gone
            # As long as any callee may take to say no.
            await wait_until(self._clock, begun + self._patience)
        raise PermissionDenied

    def _where(self, caller: Peer, message: Message) -> Contact:
        """Where the caller waits, judged as an address that is registered (I12)."""
        fields = message.fields
        if "Address" not in fields:
            raise BadRequest("a REQUEST to be connected back has an Address")
        port = int(fields.get("Port", DEFAULT_PORT))
        try:
            if parse_domain(fields["Address"]) is not None:
                raise AddressRefused("the Address to connect back to is an IP address")
            host = validate_contact(
                fields["Address"],
                port,
                source=remote_host_of(caller.stream),
                own=local_host_of(caller.stream),
                allowed=self._allowed,
                own_ports=self._own_ports,
            ).host
        except AddressRefused as error:
            raise BadRequest(str(error)) from None
        return Contact(host, port, self._clock.seconds(), LIFETIME)

    async def _connect(self, caller: Peer, callee: str, request: Request, where: Contact) -> None:
        """Reach the callee, ask it, and tell the caller if it comes. Each refusal is raised."""
        identifier = caller.identifier or ""
        self._check(identifier, callee)
        guess = self.guesses.acquire(identifier, callee, self._clock.seconds())  # I17
        if guess is None:
            self._counts["connect-back not asked for: too often"] += 1
            raise PermissionDenied
        place = await locate(self._resolver, self._reach, callee)
        peer = await self._reach.get(callee, place.contact)  # D4, D5
        self._check_again(identifier, callee, peer)
        grant = make_grant(self._randomness)
        record = self._ledger.record(
            identifier, callee, where, grant.session, CONNECT_BACK, LIFETIME
        )
        if self._ledger.first:
            await self._ledger.commit(record)
            self._check_again(identifier, callee, peer)
        else:
            self._ledger.check_room()
            self._ledger.note(record)

        def again(other: Peer) -> None:
            """The callee is to be asked over another connection, and to come once."""
            nonlocal peer
            self._check_again(identifier, callee, other)
            peer.stream.send(terminate(grant.session))
            peer = other

        expected = True  # as far as we know, from when the callee is asked
        try:
            password = request.message.fields["Password"]
            wish = _to_callee(record, password, grant)
            _, answer = await self._reach.ask(callee, peer, place.contact, wish, again)  # D6, D7
            expected = _comes(answer)
            if not expected:
                raise PermissionDenied
            self.guesses.refund(guess)
            if request.held is not None:
                await request.turn()
            self._check_again(identifier, callee, peer)  # I2: in this turn
        except BaseException:
            if expected:
                peer.stream.send(terminate(grant.session))
            raise
        self._sessions.granted(grant.session, identifier, callee, BY_PASSWORD)
        told = _to_caller(callee, grant) | canonical_identifier_field(caller, request)
        request.reply(REQUEST_ACCEPTED, told, code=200)

    def _check(self, caller: str, callee: str) -> None:
        """Only who wants to be reached by a password is; never by one whom it refuses (I3, C5)."""
        if not self._permits.by_password(callee) or self._permits.rejects(callee, caller):
            raise PermissionDenied

    def _check_again(self, caller: str, callee: str, peer: Peer) -> None:
        """What was true before somebody was waited for must be true now."""
        self._check(caller, callee)
        self._sessions.check_session_quota(caller, callee)
        if self._reach.held(callee) is not peer or not peer.stream.connected:
            raise PermissionDenied


def _comes(answer: Message) -> bool:
    """Whether a callee, having checked the password, says that it comes.

    :raises PermissionDenied: what it says can't be understood
    """
    if answer.statement not in {REQUEST_ACCEPTED, PERMISSION_DENIED}:
        raise PermissionDenied
    return answer.statement == REQUEST_ACCEPTED


def _to_callee(told: Disclosure, password: str, grant: SessionCredentials) -> Message:
    """Fig. 8c: who calls, by which password, and where it waits, as the ledger has recorded it."""
    return Message.of(
        REQUEST,
        {
            "Caller ID": told.whose,
            "Password": password,
            "Address": told.host,
            "Port": str(told.port),
            "Session": grant.session,
            "Encrypt Key": grant.key,
            "Expires": str(told.expires),
            "Reply Password": grant.reply_password,
        },
    )


def _to_caller(callee: str, grant: SessionCredentials) -> dict[str, str]:
    """What a caller needs to know its callee by when it comes: nothing of where that is."""
    return {
        "Session": grant.session,
        "Encrypt Key": grant.key,
        "Callee": callee,
        "Expires": str(LIFETIME),
        "Reply Password": grant.reply_password,
    }
