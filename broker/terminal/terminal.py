"""A terminal as a service: it keeps itself registered, takes calls and makes them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Final

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredLock, TimeoutError, maybeDeferred
from twisted.internet.interfaces import (
    IListeningPort,
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
)
from twisted.logger import Logger
from twisted.python.failure import Failure

from broker.interfaces import ICallHandler, ILoad
from broker.tables.permits import as_edits
from broker.terminal.calling import direct_exchange, place_call
from broker.terminal.calls import Calls
from broker.terminal.doors import Doors
from broker.terminal.errors import CannotLogIn
from broker.terminal.expected import Expected, ExpectedCall
from broker.terminal.line import ANSWER_TIMEOUT, Line
from broker.terminal.load import Unlimited
from broker.wire.grammar import DEFAULT_PORT
from broker.wire.grammar import identifier as canonical
from broker.wire.link import Link
from broker.wire.message import Message, printable
from broker.wire.refusals import LoginRequired, Refused, ServiceUnavailable
from broker.wire.stream import Exchange, Trace

#: Seconds for which a call waits for the connection to the mediator.
LINE_TIMEOUT: Final = 10.0
#: Seconds in which a stranger's word makes it connect at once only one time.
WOKEN_INTERVAL: Final = 1.0
#: Seconds that logging in and registering may take: a token that is refused, then the password.
LOGIN_PATIENCE: Final = 2 * ANSWER_TIMEOUT

#: The code of a login that is refused: what was shown is not good, or nothing was.
_NOT_PROVEN: Final = 401
#: The code of one that is not even looked at, since too many have failed; its cause counts seconds.
_TOO_MANY: Final = 429
#: The codes of refusals that the next attempt will have again, and that are counted (I23): what was
#: shown is not good, or proves another; too many attempts already.
_IN_VAIN: Final = frozenset((_NOT_PROVEN, 403, _TOO_MANY))


class Terminal(Service):
    """One terminal.

    :ivar identifier: whom it acts as
    :ivar calls: those it is in
    :ivar listening: fires with the direct listener's port; fails where it can't be opened. Each
        start of the service has a new one
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        identifier: str,
        mediator: IStreamClientEndpoint,
        *,
        listen: IStreamServerEndpoint | None = None,
        address: str | None = None,
        port: int | None = None,
        accept: Sequence[str] = (),
        password: str | Callable[[], str | None] | None = None,
        allow_clear_text: bool = False,
        handler: ICallHandler | None = None,
        load: ILoad | None = None,
        one_at_a_time: bool = False,
        jitter: Callable[[], float] = random.random,
        trace: Trace | None = None,
    ) -> None:
        """
        :param reactor: an ``IReactorTCP`` and ``IReactorTime``
        :param mediator: the only place from which it takes credentials (I26)
        :param listen: where it takes calls; nowhere, without
        :param address: what it registers; by default our own address on the mediator's connection
        :param port: what it registers; by default the one it listens on
        :param accept: whom it permits, once for each epoch of the mediator's store
        :param password: what it logs in with, or what gives that each time it is needed: ``None``
            where there is none, ``ValueError`` raised where it can't be had. It is needed at first,
            and whenever the mediator no longer takes the token of the last login
        :param allow_clear_text: whether password and token may go to another machine in clear
        :param handler: the application that takes calls
        :param load: how it decides its status
        :param one_at_a_time: it is busy while it is in a call (A25)
        :param jitter: spreads reconnections, from 0 to 1
        :raises ValueError: that is no identifier
        """
        identifier = canonical(identifier)
        self.identifier = identifier
        self.calls = Calls(self._ended)
        self.listening: Deferred[IListeningPort] = Deferred()
        self._reactor = reactor
        self._listen = listen
        self._address = address
        self._port = port
        self._accept = tuple(accept)
        self._handler = handler
        self._load = Unlimited() if load is None else load
        self._one_at_a_time = one_at_a_time
        self._expected = Expected()
        self._epoch: str | None = None
        self._password = password
        self._token: str | None = None
        self._refusal: str | None = None  # of the last login, so that it is logged once
        self._locks: dict[str, DeferredLock] = {}
        self._placing: set[Deferred[IProtocol]] = set()
        self._next_woken = 0.0
        self._opened_port: IListeningPort | None = None
        self._doors = Doors(
            reactor,
            identifier,
            self._expected,
            self.calls,
            handler=handler,
            woken=self._woken,
            began=self._began,
            may_take=self._idle_enough,
            trace=trace,
        )
        self._calling = direct_exchange(reactor, trace)
        self._exchange = Exchange.of_client(reactor, trace=trace)
        self._link: Link[Line] = Link(
            mediator,
            self._exchange,
            lambda stream: Line(
                stream, reactor, identifier, self, allow_clear_text=allow_clear_text
            ),
            prepare=self._log_in,
            jitter=jitter,
            patience=LOGIN_PATIENCE,
        )

    # As a service.

    def startService(self) -> None:
        """Open the direct listener, then connect and register."""
        super().startService()  # type: ignore[no-untyped-call]
        if self._listen is None:
            self._link.startService()
            return
        self.listening = Deferred()
        opening = self._listen.listen(self._doors.factory())
        opening.addCallback(self._listens)
        opening.addErrback(self.listening.errback)

    def _listens(self, port: IListeningPort) -> None:
        self._opened_port = port
        self._link.startService()
        self.listening.callback(port)

    async def _stop(self) -> None:
        port, self._opened_port = self._opened_port, None
        if port is not None:
            await maybeDeferred(port.stopListening)
        for placing in list(self._placing):
            placing.cancel()
        self._doors.stop()
        self.calls.end_all("the terminal stops")
        await self.calls.none()  # and so their ends are reported
        await maybeDeferred(self._link.stopService)
        self._calling.stop()
        self._exchange.stop()

    def stopService(self) -> Deferred[None]:
        """Break off the calls, close the listener and the connection to the mediator.

        :return: fires when all of them are closed; a peer that does not read holds that up for as
            long as a channel lingers
        """
        super().stopService()  # type: ignore[no-untyped-call]
        return Deferred.fromCoroutine(self._stop())

    # For its application.

    def ready(self) -> Deferred[None]:
        """Fires once the terminal is connected and registered."""
        return self._link.wait().addCallback(lambda _: None)

    def call(self, callee: str, factory: IProtocolFactory) -> Deferred[IProtocol]:
        """Call a terminal; the protocol that the factory makes speaks over the channel.

        Calls to one callee are made one after the other, since a new query voids what an earlier
        one was granted and has not yet used.

        :return: fires with that protocol; fails with a ``Refused``, ``CallFailed``, or
            ``ConnectionLost`` where the connection to the mediator goes; cancel to give up
        """
        placing = Deferred.fromCoroutine(self._call(callee, factory))
        self._placing.add(placing)

        def over(result: object) -> object:
            self._placing.discard(placing)
            return result

        placing.addBoth(over)
        return placing

    def edit(self, edits: Sequence[str]) -> Deferred[Message]:
        """Edit the terminal's permits: ``['Add Ic,Ie', 'Delete If']``."""
        return self._connected().addCallback(lambda line: line.register(edits=edits))

    def accepted(self) -> Deferred[list[str]]:
        """The terminal's permits, as the mediator has them."""
        return self._connected().addCallback(lambda line: line.accepted())

    async def _call(self, callee: str, factory: IProtocolFactory) -> IProtocol:
        lock = self._locks.setdefault(callee, DeferredLock())
        await lock.acquire()
        try:
            return await place_call(
                self._reactor,
                await self._connected(),
                callee,
                factory,
                calls=self.calls,
                exchange=self._calling,
            )
        finally:
            lock.release()
            if not lock.locked:
                self._locks.pop(callee, None)

    def _connected(self) -> Deferred[Line]:
        def late(failure: Failure) -> Line:
            failure.trap(TimeoutError)
            raise ServiceUnavailable("there is no connection to the mediator")

        return self._link.wait().addTimeout(LINE_TIMEOUT, self._reactor).addErrback(late)

    # Registering.

    async def _log_in(self, line: Line) -> None:
        """Say who and where we are, and once for each epoch whom we permit."""
        try:
            answer = await self._register(line)
            epoch = answer.get("Epoch")
            # A token is good for one epoch: none is kept beyond it.
            self._token = answer.get("Token") or (self._token if epoch == self._epoch else None)
            if self._accept and epoch != self._epoch:
                await line.register(edits=as_edits(self._accept, "Add"))
            self._epoch = epoch
        except Refused as refusal:
            self._refused(refusal)
            raise
        self._refusal = None
        self.log.info("{identifier} is registered", identifier=printable(self.identifier))

    async def _register(self, line: Line) -> Message:
        """Log in and register where we are, in one message: by the token, else the password."""
        where: dict[str, Any] = {}
        if self._opened_port is not None:
            where["address"] = line.local_host if self._address is None else self._address
            where["port"] = self._port or getattr(self._opened_port.getHost(), "port", DEFAULT_PORT)
        if self._token is not None:
            try:
                return await line.register(token=self._token, **where)
            except Refused as refusal:
                if refusal.code != _NOT_PROVEN:
                    raise
                self._token = None
        try:
            password = self._password() if callable(self._password) else self._password
            return await line.register(password=password, **where)
        except ValueError as error:  # there is none to be had, or it is none
            raise CannotLogIn(str(error)) from None

    def _refused(self, refusal: Refused) -> None:
        """Say so; a login that is refused as the last one was, only once."""
        told = "The mediator refused the registration of {identifier}: {statement} {cause}"
        cause = refusal.cause
        if refusal.code in _IN_VAIN or isinstance(refusal, CannotLogIn):
            self._link.slow_down()
            told = (
                "{identifier} could not log in, and tries again now and then: {statement} {cause}"
            )
            if isinstance(refusal, LoginRequired) and self._password is not None:
                cause += "; no password is at hand: name a file, or do broker login"
            said = refusal.statement if refusal.code == _TOO_MANY else cause
            if said == self._refusal:
                return
            self._refusal = said
        self.log.warn(
            told,
            identifier=printable(self.identifier),
            statement=refusal.statement,
            cause=printable(cause),
        )

    # Told by the mediator.

    def acceptable(self) -> bool:
        """The status (fig. 18)."""
        return self._handler is not None and self._idle_enough() and self._load.acceptable()

    def announced(self, call: ExpectedCall) -> None:
        """Fig. 5e."""
        self._doors.expect(call)

    def terminated(self, session: str) -> None:
        """A session is void, or must end."""
        self._expected.void(session)
        self.calls.terminate(session)

    def superseded(self) -> None:
        """Somebody else registered as us; that is worth an operator's look."""
        self.log.warn(
            "{identifier} is now reached elsewhere: another connection has registered its address",
            identifier=printable(self.identifier),
        )

    def line_lost(self, line: Line, reason: Failure) -> None:
        """A withdrawal could not be told to us now: what is not begun is void (I2)."""
        self._expected.void_all()

    # Told by the doors and the calls.

    def _idle_enough(self) -> bool:
        return not (self._one_at_a_time and len(self.calls))

    def _woken(self) -> None:
        now = self._reactor.seconds()
        if now >= self._next_woken and self._refusal is None:  # else it would be refused as often
            self._next_woken = now + WOKEN_INTERVAL
            self._link.retry_now()

    def _began(self, session: str) -> None:
        line = self._link.conversation
        if line is not None:
            line.began(session)

    def _ended(self, session: str, how: str) -> None:
        line = self._link.conversation
        if line is not None:
            line.ended(session, how)
