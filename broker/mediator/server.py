"""The mediator put together: who is this connection, which verb, and what becomes of a refusal."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection
from typing import Final, cast

from cryptography import x509
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from broker.interfaces import IResolver, IStore, ITrigger, State
from broker.mediator.address_check import AddressCheck
from broker.mediator.aliases import Names
from broker.mediator.auth.accounts import Accounts
from broker.mediator.auth.login import Anybody, Login
from broker.mediator.auth.passwords import Passwords
from broker.mediator.call import Calls
from broker.mediator.connect_back import ConnectBack
from broker.mediator.connection import Peer
from broker.mediator.connections import ConnectionRegistry
from broker.mediator.consent import Consent
from broker.mediator.ledger import DAYS, Ledger
from broker.mediator.permits import Permits
from broker.mediator.registration import UDP_INTERVAL, Registration
from broker.mediator.sessions import Sessions
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
from broker.net.connection import ConnectionHub, PeerConnection
from broker.net.dialogue import Request
from broker.net.request_task import RequestTask, declared, refuse
from broker.net.timers import DeadlineQueue
from broker.net.tls.contexts import certificate_of
from broker.tables.accounts import AccountTable
from broker.tables.grants import Randomness
from broker.tables.locations import Network

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

    :ivar counts: how often each outcome was had, for the operator
    :ivar accounts: who may log in, for the operator
    """

    log = Logger()

    def __init__(
        self,
        exchange: ConnectionHub,
        store: IStore,
        state: State,
        resolver: IResolver,
        trigger: ITrigger,
        randomness: Randomness,
        *,
        dialer: WakeUpDialer | None = None,
        login: Login | None = None,
        accounts: AccountTable | None = None,
        passwords: Passwords | None = None,
        wall: Callable[[], float] = time.time,
        ledger_first: bool = False,
        ledger_days: float = DAYS,
        status: bool = True,
        status_timeout: float = 5.0,
        udp_interval: int = UDP_INTERVAL,
        clear_text: bool = False,
        uniform: bool = False,
        allowed: Collection[Network] = (),
        own_ports: Collection[int] = (),
    ) -> None:
        """
        :param state: what the store held at the start
        :param dialer: tries whether terminals can be reached; none are tried, without
        :param login: how it is proven who a connection acts as; whoever says so, without
        :param accounts: the table of accounts, where ``login`` has it too
        :param passwords: what makes the verifiers of the operator's new passwords
        :param wall: the time in seconds since 1970
        :param ledger_first: commit each disclosure before the address leaves
        :param ledger_days: for so long disclosures are kept
        :param status: ask each callee for its status (fig. 16), or not (fig. 12)
        :param status_timeout: seconds that a call may take to be decided
        :param udp_interval: seconds from one datagram of a terminal to the next
        :param clear_text: give registration keys to other machines in clear text, too
        :param uniform: tell every refusal as fig. 5c
        :param allowed: networks whose addresses may be registered from anywhere, and dialled
        :param own_ports: the ports of this server
        """
        clock = exchange.clock
        self.exchange = exchange
        self.counts: Counter[str] = Counter()
        self.reach = ConnectionRegistry(trigger, clock)
        self.sessions = Sessions(clock, self.reach)
        table = AccountTable(state.accounts) if accounts is None else accounts
        now = steady(wall, clock)
        self.permits = Permits(
            state, store, self.sessions, now, canonical=table.canonical, names=table.names
        )
        self.ledger = Ledger(store, clock, wall, first=ledger_first, days=ledger_days)
        self.accounts = Accounts(
            table,
            store,
            self.permits,
            self.reach,
            resolver,
            Passwords(randomness) if passwords is None else passwords,
            randomness,
        )
        self._login: Login = Anybody() if login is None else login
        self._canonical = table.canonical
        self._resolver = resolver
        self._uniform = uniform
        self._deciding: DeadlineQueue[RequestTask] = DeadlineQueue(
            clock, status_timeout, RequestTask.cancel
        )
        self._registration = Registration(
            self.permits,
            state.epoch,
            resolver,
            self.reach,
            self.sessions,
            Names(
                table,
                self.permits,
                self.reach,
                resolver,
                claimed=isinstance(self._login, Anybody),
            ),
            clock.seconds,
            randomness,
            udp_interval=udp_interval,
            clear_text=clear_text,
            allowed=allowed,
            own_ports=own_ports,
        )
        self._calls = Calls(
            clock,
            self.permits,
            resolver,
            self.reach,
            self.sessions,
            self.ledger,
            Consent(
                clock,
                self.permits,
                resolver,
                self.reach,
                self.counts,
                patience=status_timeout,
            ),
            randomness,
            status=status,
            own_ports=own_ports,
        )
        self._connect_back = ConnectBack(
            clock,
            self.permits,
            resolver,
            self.reach,
            self.sessions,
            self.ledger,
            self.counts,
            randomness,
            patience=status_timeout,
            allowed=allowed,
            own_ports=own_ports,
        )

        #: Requests but for the two that come most often; each is told whose it is.
        self._others: Final = {
            (REQUEST, ""): self._called_back,
            (QUERY, PERMITS): self._tell_permits,
            (QUERY, DISCLOSURES): self._tell_disclosures,
            (QUERY, ADDRESS): AddressCheck(clock, dialer, own_ports).answer,
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
                self.sessions.began(peer, session)
            elif "End" in message.fields:
                self.sessions.ended(peer, session, message.fields["End"])

    def lost(self, peer: Peer) -> None:
        """A connection is gone: its address begins to expire, or an older connection's is back."""
        if peer.identifier is None:
            return
        if peer.address is not None:
            self._resolver.release(peer.identifier, peer.address)
        if peer.key is not None:
            self._resolver.release_key(peer.identifier, peer.key)
        returned = self.reach.lost(peer)
        if returned is not None:
            renewing = Deferred.fromCoroutine(self._registration.renew(peer.identifier, returned))
            renewing.addErrback(self._not_renewed)

    def _not_renewed(self, failure: Failure) -> None:
        why = declared(_exception(failure), self.log)
        self.log.warn("The resolver did not take an address: {why}", why=why)

    def drop(self, revoked: Callable[[x509.Certificate], bool]) -> None:
        """Close the connections whose certificate is revoked by now (I2)."""
        for peer in self.reach.everybody():
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
        self.reach.stop()
        self._deciding.stop()
        self.sessions.stop()
        self.permits.stop()
        self.exchange.stop()
        return self.ledger.stop()

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
        await self.permits.settled(identifier)  # what was asked before has its effect
        fields = {"Accept": "\n".join(self.permits.told(identifier))}
        if not request.bare:
            fields |= self.permits.told_besides(identifier)
        request.reply("", fields, code=200)

    async def _tell_disclosures(self, identifier: str, peer: Peer, request: Request) -> None:
        await self.ledger.answer(identifier, request)

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
        self.reach.bind(peer, self._canonical(identifier))
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


def steady(wall: Callable[[], float], clock: IReactorTime) -> Callable[[], float]:
    """The wall clock as it stood at the start, going on with the steady one: no step moves it."""
    ahead = wall() - clock.seconds()
    return lambda: clock.seconds() + ahead


def _exception(failure: Failure) -> Exception:
    """What failed; anything but an exception goes on as it is."""
    failure.trap(Exception)
    return cast(Exception, failure.value)
