"""The mediator: the table of requests, the check of who asks, and how an error is answered."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, cast

from cryptography import x509
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from broker.interfaces import State
from broker.mediator.address_check import AddressCheck
from broker.mediator.aliases import Aliases
from broker.mediator.auth.accounts import Accounts
from broker.mediator.auth.login import LOGIN_FIELDS, Authentication, UnverifiedLogin
from broker.mediator.auth.passwords import Passwords
from broker.mediator.call import CallHandler
from broker.mediator.connect_back import ConnectBack
from broker.mediator.connection import TerminalConnection
from broker.mediator.connections import ConnectionRegistry
from broker.mediator.context import MediatorContext, MediatorServices, MediatorSettings
from broker.mediator.ledger import Ledger
from broker.mediator.ledger_pruning import LedgerPruner
from broker.mediator.ledger_query import LedgerQuery
from broker.mediator.permit_admin import PermitAdmin
from broker.mediator.permits import Permits
from broker.mediator.registration import RegistrationHandler
from broker.mediator.sessions import Sessions
from broker.mediator.wakeup import TerminalReach
from broker.mediator.wakeup_dialer import WakeUpDialer
from broker.messages.errors import (
    BadRequest,
    CalleeBusy,
    CalleeNotConnected,
    CalleeNotFound,
    PermissionDenied,
    Refused,
    RegistrationFailed,
    ServiceUnavailable,
    TooManyRequests,
)
from broker.messages.grammar import QUERY, REGISTER, REQUEST
from broker.messages.message import Message, printable
from broker.messages.statements import ADDRESS, BEGIN, DISCLOSURES, PERMITS
from broker.net.connection import PeerConnection
from broker.net.dialogue import Request
from broker.net.request_task import RequestTask, send_refusal, to_refusal
from broker.net.timers import DeadlineQueue
from broker.net.tls.transport import certificate_of
from broker.tables.accounts import AccountTable

#: Refusals that ``--causes uniform`` sends as fig. 5c, as the document's base case does (A20).
_HIDDEN: Final = (
    CalleeNotFound,
    CalleeBusy,
    CalleeNotConnected,
    TooManyRequests,
    ServiceUnavailable,
)
#: Fields without which a ``REQUEST`` does not ask for connect-back, and is not served here.
_CONNECT_BACK_FIELDS: Final = frozenset(("Callee", "Password"))

#: Serves one kind of request of a terminal that has logged in.
Handler = Callable[[TerminalConnection, Request], Coroutine[Deferred[Any], Any, None]]


@dataclass(frozen=True, slots=True)
class Route:
    """One row of the table of requests.

    :ivar handler: serves it
    :ivar refusal: how a request is refused that names another terminal than the connection's
    :ivar required: fields without which it is no request of this kind
    """

    handler: Handler
    refusal: type[Refused] = PermissionDenied
    required: frozenset[str] = frozenset()


class Mediator:
    """The mediation server 101 (or 111, where it asks for the status).

    :ivar context: what its handlers work with
    :ivar accounts: who may log in, for the operator
    """

    log = Logger()

    def __init__(
        self,
        services: MediatorServices,
        state: State,
        authentication: Authentication | None = None,
        settings: MediatorSettings | None = None,
    ) -> None:
        """
        :param state: what the store held at the start
        :param authentication: how connections log in; without, whatever they say is believed
        """
        if authentication is None:
            authentication = Authentication(AccountTable(state.accounts))
        if settings is None:
            settings = MediatorSettings()
        table = authentication.accounts
        self.hub = services.hub
        self.context = context = _make_context(services, state, table, settings)
        self.counts = context.counts
        passwords = authentication.passwords or Passwords(services.randomness)
        self.accounts = Accounts(context, table, passwords)
        self._login = login = authentication.login
        self._canonical = table.canonical
        self._resolver = services.resolver
        self._uniform = settings.uniform_refusals
        self._deciding: DeadlineQueue[RequestTask] = DeadlineQueue(
            context.clock, settings.status_timeout, RequestTask.cancel
        )
        aliases = Aliases(context, table, claimed=isinstance(login, UnverifiedLogin))
        self._pruner = LedgerPruner(
            services.store, context.clock, services.wall, settings.ledger_days
        )
        self._registration = RegistrationHandler(context, aliases)
        self._calls = CallHandler(context)
        self._routes: Final = self._make_routes(services.dialer)

    def _make_routes(self, dialer: WakeUpDialer | None) -> dict[tuple[str, str], Route]:
        """Every request of the protocol that is served here, by its verb and statement."""
        context = self.context
        return {
            (QUERY, ""): Route(self._calls.call),
            (REGISTER, ""): Route(self._registration.register, refusal=RegistrationFailed),
            (REQUEST, ""): Route(ConnectBack(context).request, required=_CONNECT_BACK_FIELDS),
            (QUERY, PERMITS): Route(context.permits.answer),
            (QUERY, DISCLOSURES): Route(LedgerQuery(context).answer),
            (QUERY, ADDRESS): Route(AddressCheck(context, dialer).answer),
        }

    def start(self) -> None:
        """Begin what the mediator does by itself: it drops old records of the ledger."""
        self._pruner.start()

    def peer(self, stream: PeerConnection) -> TerminalConnection:
        """The receiver of a new connection."""
        return TerminalConnection(stream, self)

    # From a terminal's connection.

    def requested(self, peer: TerminalConnection, request: Request) -> None:
        """A request came: serve it, and answer it whatever happens.

        Here, once, it is checked that the connection has logged in and that the request names no
        one else (I4). The handler then starts in this same turn.
        """
        message = request.message
        try:
            route = self._routes.get((message.verb, message.statement))
            # No request has a body; one that is announced would be read, and kept, for nothing.
            if "Length" in message.fields:
                raise BadRequest("this message takes no body")
            if route is None or not route.required.issubset(message.fields):
                raise BadRequest("no request of this kind is known here")
            if peer.logged_in:
                self._check_identity(peer, message, route)
                if message.verb == REGISTER and not LOGIN_FIELDS.isdisjoint(message.fields):
                    raise RegistrationFailed("this connection has logged in already")
                steps = route.handler(peer, request)
            else:
                steps = self._log_in(peer, request, route)
        except Exception as raised:  # not only a refusal: a bug must not leave it unanswered
            self.request_failed(raised, request)
            return
        task = RequestTask.start(steps, request, self)
        # A registration is carried through once it is begun: it is not cancelled half-way.
        if task is not None and message.verb != REGISTER:
            self._deciding.add(task)
            request.work = task

    def received_malformed(self) -> None:
        """A connection has sent what is no message."""
        self.counts["malformed"] += 1

    def reported(self, peer: TerminalConnection, session: str, message: Message) -> None:
        """A report on a session, from one of its sides."""
        if peer.logged_in:
            if message.statement == BEGIN:
                self.context.sessions.began(peer, session)
            elif "End" in message.fields:
                self.context.sessions.ended(peer, session, message.fields["End"])

    def lost(self, peer: TerminalConnection) -> None:
        """A connection is gone: its address begins to expire, or that of an older one is back."""
        if not peer.logged_in:
            return
        if peer.address is not None:
            self._resolver.release(peer.identifier, peer.address)
        if peer.key is not None:
            self._resolver.release_key(peer.identifier, peer.key)
        returned = self.context.connections.lost(peer)
        if returned is not None:
            renewing = Deferred.fromCoroutine(self._registration.renew(peer.identifier, returned))
            renewing.addErrback(self._not_renewed)

    def _not_renewed(self, failure: Failure) -> None:
        why = to_refusal(_exception(failure), self.log)
        self.log.warn("The resolver did not take an address: {why}", why=why)

    def drop(self, revoked: Callable[[x509.Certificate], bool]) -> None:
        """Close every connection whose certificate is revoked now (I2)."""
        for peer in self.context.connections.all():
            certificate = certificate_of(peer.stream.transport)
            if certificate is not None and revoked(certificate):
                self.log.warn(
                    "A connection of {identifier} is closed: its certificate has been revoked",
                    identifier=printable(peer.identifier),
                )
                peer.stream.abort()
                self._resolver.drop_keys(peer.identifier)

    def stop(self) -> Deferred[None]:
        """Close every connection, and leave no timer behind.

        :return: fires when all disclosures are in the store; only then may that be stopped
        """
        # The ledger last: what is still decided while connections close is recorded too.
        self.context.reach.stop()
        self.context.connections.stop()
        self._deciding.stop()
        self.context.sessions.stop()
        self.context.permits.stop()
        self.hub.stop()
        self._pruner.stop()
        return self.context.disclosures.stop()

    # Serving.

    async def _log_in(self, peer: TerminalConnection, request: Request, route: Route) -> None:
        """Find out by a connection's first request which terminal it is, and serve that request.

        A connection that has proven its identity keeps it, whatever becomes of the request.
        """
        login = await self._login.admit(peer, request)
        # Bound before the check of names: what it has proven holds even if the request is refused.
        self.context.connections.bind(peer, self._canonical(login.identifier))
        self._check_identity(peer, request.message, route)
        if login.token is None:
            await route.handler(peer, request)
        else:
            await self._registration.register(peer, request, login.token)

    def _check_identity(self, peer: TerminalConnection, message: Message, route: Route) -> None:
        """See that a request names the terminal that it comes from, or none (I4).

        It may also use another name of that terminal (C1).
        """
        identifier = peer.identifier
        named = message.fields.get("Identifier")
        if named is not None and named != identifier and self._canonical(named) != identifier:
            raise route.refusal("this connection belongs to another identifier", code=403)

    def request_failed(self, raised: Exception, request: Request) -> None:
        """The one place where an error becomes a message."""
        if isinstance(raised, CancelledError):  # it took too long to decide, or the caller has gone
            error: Refused = CalleeNotConnected()
        else:
            error = to_refusal(raised, self.log)
        if self._uniform and isinstance(error, _HIDDEN) and "Callee" in request.message.fields:
            error = PermissionDenied()
        self.counts[error.statement] += 1
        send_refusal(request, error)

    def request_served(self, task: RequestTask) -> None:
        """A request that had to wait is served: its deadline is void."""
        self._deciding.discard(task)


def _make_context(
    services: MediatorServices, state: State, accounts: AccountTable, settings: MediatorSettings
) -> MediatorContext:
    """Assemble what the handlers share."""
    clock, store = services.hub.clock, services.store
    wall = monotonic_wall_clock(services.wall, clock)
    connections = ConnectionRegistry(clock)
    sessions = Sessions(clock, connections)
    permits = Permits(state, store, sessions, wall, accounts)
    ledger = Ledger(store, clock, services.wall, first=settings.ledger_first)
    return MediatorContext(
        clock=clock,
        wall=wall,
        randomness=services.randomness,
        epoch=state.epoch,
        store=store,
        resolver=services.resolver,
        permits=permits,
        permit_admin=PermitAdmin(permits, store),
        connections=connections,
        reach=TerminalReach(connections, services.wakeup, clock),
        sessions=sessions,
        disclosures=ledger,
        settings=settings,
    )


def monotonic_wall_clock(wall: Callable[[], float], clock: IReactorTime) -> Callable[[], float]:
    """The wall clock as read now, going on with the monotonic clock: no step moves it."""
    ahead = wall() - clock.seconds()
    return lambda: clock.seconds() + ahead


def _exception(failure: Failure) -> Exception:
    """The exception of a failure; any other kind of failure is raised."""
    failure.trap(Exception)
    return cast(Exception, failure.value)
