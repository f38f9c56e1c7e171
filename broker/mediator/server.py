"""The mediator put together: who is this connection, which verb, and what becomes of a refusal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, cast

from cryptography import x509
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from broker.interfaces import State
from broker.mediator.address_check import AddressCheck
from broker.mediator.aliases import Aliases
from broker.mediator.auth.accounts import Accounts
from broker.mediator.auth.login import Anybody, Authentication
from broker.mediator.auth.passwords import Passwords
from broker.mediator.call import CallHandler
from broker.mediator.connect_back import ConnectBack
from broker.mediator.connection import Peer
from broker.mediator.connections import ConnectionRegistry
from broker.mediator.context import MediatorContext, MediatorServices, MediatorSettings
from broker.mediator.ledger import Ledger
from broker.mediator.permits import Permits
from broker.mediator.registration import Registration
from broker.mediator.sessions import Sessions
from broker.mediator.wakeup import TerminalReach
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
from broker.net.request_task import RequestTask, declared, refuse
from broker.net.timers import DeadlineQueue
from broker.net.tls.transport import certificate_of
from broker.tables.accounts import AccountTable

#: What ``--causes uniform`` tells as fig. 5c, as the base case of the document does (A20).
_HIDDEN: Final = (
    CalleeNotFound,
    CalleeBusy,
    CalleeNotConnected,
    TooManyRequests,
    ServiceUnavailable,
)


#: Fields by which a request to be connected back is known.
_CONNECT_BACK: Final = frozenset(("Callee", "Password"))
#: Fields by which a connection logs in.
_LOGINS: Final = frozenset(("Password", "Token"))


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
        aliases = Aliases(context, table, claimed=isinstance(login, Anybody))
        self._registration = Registration(context, aliases)
        self._calls = CallHandler(context)
        self._connect_back = ConnectBack(context)
        #: Requests but for the two that come most often; each is told whose it is.
        self._others: Final = {
            (REQUEST, ""): self._called_back,
            (QUERY, PERMITS): self._tell_permits,
            (QUERY, DISCLOSURES): self._tell_disclosures,
            (QUERY, ADDRESS): AddressCheck(context, services.dialer).answer,
        }

    def peer(self, stream: PeerConnection) -> Peer:
        """The receiver of a new connection."""
        return Peer(stream, self)

    # From a peer.

    def requested(self, peer: Peer, request: Request) -> None:
        """A request came: do it, and answer it whatever happens."""
        steps = self._serve(peer, request)
        serving = RequestTask(steps, request, refused=self._refuse, over=self._deciding.discard)
        if serving.begin() and request.message.verb != REGISTER:
            self._deciding.add(serving)
            request.abandoned = serving.cancel

    def reported(self, peer: Peer, session: str, message: Message) -> None:
        """A report on a session, from one of its sides."""
        if peer.identifier is not None:
            if message.statement == BEGIN:
                self.context.sessions.began(peer, session)
            elif "End" in message.fields:
                self.context.sessions.ended(peer, session, message.fields["End"])

    def lost(self, peer: Peer) -> None:
        """A connection is gone: its address begins to expire, or an older connection's is back."""
        if peer.identifier is None:
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
        why = declared(_exception(failure), self.log)
        self.log.warn("The resolver did not take an address: {why}", why=why)

    def drop(self, revoked: Callable[[x509.Certificate], bool]) -> None:
        """Close the connections whose certificate is revoked by now (I2)."""
        for peer in self.context.connections.all():
            certificate = certificate_of(peer.stream.transport)
            if certificate is not None and revoked(certificate):
                self.log.warn(
                    "A connection of {identifier} is closed: its certificate has been revoked",
                    identifier=printable(peer.identifier or ""),
                )
                peer.stream.abort()
                self._resolver.drop_keys(peer.identifier or "")

    def stop(self) -> Deferred[None]:
        """Close every connection, and leave no timer behind.

        :return: fires when the store has what it is to keep, and not before may it be stopped
        """
        self.context.reach.stop()
        self.context.connections.stop()
        self._deciding.stop()
        self.context.sessions.stop()
        self.context.permits.stop()
        self.hub.stop()
        return self.context.disclosures.stop()

    # Serving.

    async def _serve(self, peer: Peer, request: Request) -> None:
        message = request.message
        if "Length" in message.fields:
            raise BadRequest("this message takes no body")
        kind = (message.verb, message.statement)
        if kind == (QUERY, ""):
            if not self._speaks_for_itself(peer, message, PermissionDenied):
                await self._log_in(peer, message, PermissionDenied)
            if "Callee" not in message.fields:
                raise BadRequest("a QUERY names a Callee")
            await self._calls.call(peer, request)
            self.counts["calls granted"] += 1
        elif kind == (REGISTER, ""):
            await self._register(peer, request)
            self.counts["registrations"] += 1
        else:
            serve = self._others.get(kind)
            if serve is None or (
                kind == (REQUEST, "") and not _CONNECT_BACK.issubset(message.fields)
            ):
                raise BadRequest("no request of this kind is known here")
            await serve(await self._identify(peer, message), peer, request)

    async def _called_back(self, identifier: str, peer: Peer, request: Request) -> None:
        await self._connect_back.request(peer, request)
        self.counts["connect-backs granted"] += 1

    async def _tell_permits(self, identifier: str, peer: Peer, request: Request) -> None:
        await self.context.permits.settled(identifier)  # what was asked before has its effect
        fields = {"Accept": "\n".join(self.context.permits.told(identifier))}
        if not request.bare:
            fields |= self.context.permits.told_besides(identifier)
        request.reply("", fields, code=200)

    async def _tell_disclosures(self, identifier: str, peer: Peer, request: Request) -> None:
        await self.context.disclosures.answer(identifier, request)

    async def _register(self, peer: Peer, request: Request) -> None:
        """Log in, where that is still to be done, and register."""
        message = request.message
        try:
            if not self._speaks_for_itself(peer, message, RegistrationFailed):
                await self._log_in(peer, message, RegistrationFailed)
            elif not _LOGINS.isdisjoint(message.fields):
                raise RegistrationFailed("this connection has logged in already")
            await self._registration.register(peer, request)
        finally:
            peer.greeting = None

    def _speaks_for_itself(self, peer: Peer, message: Message, refusal: type[Refused]) -> bool:
        """Whether a connection is bound, and a message names whom it is bound to, or nobody (I4).

        What it names beside the identifier is another name of it (C1).
        """
        identifier = peer.identifier
        if identifier is None:
            return False
        named = message.fields.get("Identifier")
        if named is not None and named != identifier and self._canonical(named) != identifier:
            raise refusal("this connection belongs to another identifier", code=403)
        return True

    async def _log_in(self, peer: Peer, message: Message, refusal: type[Refused]) -> None:
        """Bind a connection to whom its first message proves to speak, whatever becomes of that."""
        identifier = await self._login.admit(peer, message)
        self.context.connections.bind(peer, self._canonical(identifier))
        self._speaks_for_itself(peer, message, refusal)

    async def _identify(self, peer: Peer, message: Message) -> str:
        """Who asks; refused as fig. 5c where it isn't who it says."""
        if not self._speaks_for_itself(peer, message, PermissionDenied):
            await self._log_in(peer, message, PermissionDenied)
        return peer.identifier or ""

    def _refuse(self, raised: Exception, request: Request) -> None:
        """The one place where what went wrong becomes a message."""
        if isinstance(raised, CancelledError):
            error: Refused = CalleeNotConnected()
        else:
            error = declared(raised, self.log)
        if self._uniform and isinstance(error, _HIDDEN) and "Callee" in request.message.fields:
            error = PermissionDenied()
        self.counts[error.statement] += 1
        refuse(request, error)


def _make_context(
    services: MediatorServices, state: State, accounts: AccountTable, settings: MediatorSettings
) -> MediatorContext:
    """Assemble what the handlers share."""
    clock, store = services.hub.clock, services.store
    wall = monotonic_wall_clock(services.wall, clock)
    connections = ConnectionRegistry(clock)
    sessions = Sessions(clock, connections)
    permits = Permits(
        state, store, sessions, wall, canonical=accounts.canonical, names=accounts.names
    )
    ledger = Ledger(
        store, clock, services.wall, first=settings.ledger_first, days=settings.ledger_days
    )
    return MediatorContext(
        clock=clock,
        wall=wall,
        randomness=services.randomness,
        epoch=state.epoch,
        store=store,
        resolver=services.resolver,
        permits=permits,
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
    """What failed; anything but an exception goes on as it is."""
    failure.trap(Exception)
    return cast(Exception, failure.value)
