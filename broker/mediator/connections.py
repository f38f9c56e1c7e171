"""How the mediator gets to a terminal: over a connection it holds, else by waking it.

Who asks for a callee here does not learn which of the two it was.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from broker.interfaces import IResolver, ITrigger
from broker.mediator.connection import Peer, seen_ip
from broker.messages.errors import CalleeNotConnected, CalleeNotFound
from broker.messages.grammar import DEFAULT_EXPIRES, NOTIFY
from broker.messages.message import Message, printable
from broker.messages.statements import SUPERSEDED
from broker.net.peer_address import remote_host_of
from broker.net.timers import DeadlineQueue
from broker.tables.locations import Binding, Contact

#: Connections one identifier may have; one more closes the oldest that is not reached.
CONNECTIONS_AN_IDENTIFIER: Final = 5
#: Seconds after which a connection that says nothing to a question may be dead, though both ends
#: believe in it: a router between them may have forgotten it.
SILENCE: Final = 1.0


class _Waking:
    """A terminal is being woken, for all who wait for it at the time."""

    __slots__ = ("doing", "waiting")

    def __init__(self) -> None:
        self.waiting: list[Deferred[Peer]] = []
        self.doing: Deferred[None] | None = None

    def failed(self, failure: Failure) -> None:
        """It can't be woken; nobody waits any more where it was given up."""
        for waiting in list(self.waiting):
            if not waiting.called:
                waiting.errback(failure)

    def left(self, waiting: Deferred[Peer]) -> None:
        """One waits no more; the last one ends it."""
        self.waiting.remove(waiting)
        if not self.waiting and self.doing is not None:
            self.doing.cancel()


class _Question:
    """What a terminal is asked over a connection that may be dead.

    :ivar answer: fires with its answer
    :ivar moved: it is given up, since the terminal is reached over another connection
    :ivar waking: the terminal is being woken meanwhile
    """

    __slots__ = ("address", "answer", "identifier", "moved", "peer", "waking")

    def __init__(
        self, identifier: str, peer: Peer, address: Contact, answer: Deferred[Message]
    ) -> None:
        self.identifier = identifier
        self.peer = peer
        self.address = address
        self.answer = answer
        self.moved = False
        self.waking: Deferred[None] | None = None

    def came(self, peer: Peer) -> None:
        """The terminal has registered; over the same connection, that is not dead."""
        if peer is not self.peer and not self.answer.called:
            self.moved = True
            self.answer.cancel()

    def over(self) -> None:
        """Nothing more is waited for."""
        if self.waking is not None:
            self.waking.cancel()


async def locate(resolver: IResolver, reach: ConnectionRegistry, identifier: str) -> Binding:
    """Where a terminal is: as the resolver knows (S1204); else where its connection comes from.

    :raises CalleeNotFound: nobody knows
    :raises ServiceUnavailable: the resolver is away
    """
    try:
        return await resolver.lookup(identifier)
    except CalleeNotFound:
        return reach.by_line(identifier)


class ConnectionRegistry:
    """Who is connected, and over which connection each identifier is reached."""

    log = Logger()

    def __init__(self, trigger: ITrigger, clock: IReactorTime) -> None:
        self._trigger = trigger
        self._clock = clock
        self._silent: DeadlineQueue[_Question] = DeadlineQueue(clock, SILENCE, self._fell_silent)
        self._stopped = False
        self._bound: dict[str, tuple[Peer, ...]] = {}
        self._reached: dict[str, Peer] = {}
        self._waiting: dict[str, list[Deferred[Peer]]] = {}
        self._waking: dict[str, _Waking] = {}
        #: How often a connection came to be the one that is reached.
        self.turn = 0

    def bind(self, peer: Peer, identifier: str) -> None:
        """A connection has said who it is."""
        peer.identifier = identifier
        peer.stream.authenticated()
        peers = self._bound.get(identifier, ())
        if len(peers) >= CONNECTIONS_AN_IDENTIFIER:
            oldest = next(one for one in peers if one is not self._reached.get(identifier))
            peers = tuple(one for one in peers if one is not oldest)
            oldest.stream.close()
        self._bound[identifier] = (*peers, peer)

    def registered(self, peer: Peer, address: Contact | None) -> None:
        """A connection has registered: the terminal is reached there from now on.

        :param address: the address, unless it is where the terminal's datagrams come from
        """
        identifier = _name(peer)
        if address is not None:
            peer.address = address
        self.turn += 1
        peer.turn = self.turn
        displaced = self._reached.get(identifier)
        self._reached[identifier] = peer
        if displaced is not None and displaced is not peer:
            displaced.stream.send(Message(NOTIFY, SUPERSEDED))
            self.log.warn(
                "{identifier} is now reached over a connection from {new}, no longer from {old}",
                identifier=printable(identifier),
                new=remote_host_of(peer.stream),
                old=remote_host_of(displaced.stream),
            )
        for waiting in self._waiting.pop(identifier, ()):
            waiting.callback(peer)

    def withdrawn(self, identifier: str) -> None:
        """The address of a terminal is withdrawn: over no connection is it reached any more."""
        self._reached.pop(identifier, None)
        for peer in self._bound.get(identifier, ()):
            peer.address = peer.key = None

    def lost(self, peer: Peer) -> Peer | None:
        """A connection is gone; return the one that is reached in its stead, if that is new."""
        identifier = _name(peer)
        peers = tuple(one for one in self._bound.get(identifier, ()) if one is not peer)
        if peers:
            self._bound[identifier] = peers
        else:
            self._bound.pop(identifier, None)
        return self._return(peer)

    def _return(self, peer: Peer) -> Peer | None:
        identifier = _name(peer)
        if self._reached.get(identifier) is not peer:
            return None
        del self._reached[identifier]
        others = self._bound.get(identifier, ())
        registered = [one for one in others if one.address is not None or one.key is not None]
        if not registered:
            return None
        newest = max(registered, key=lambda one: one.turn)
        self._reached[identifier] = newest
        self.turn += 1
        newest.turn = self.turn  # what was looked up before is the address of the one that is gone
        return newest

    def everybody(self) -> list[Peer]:
        """All connections that have said who they are."""
        return [peer for peers in self._bound.values() for peer in peers]

    def held(self, identifier: str) -> Peer | None:
        """The connection over which a terminal is reached now, if it holds one."""
        return self._reached.get(identifier)

    def connections(self, identifier: str) -> tuple[Peer, ...]:
        """All connections of an identifier, oldest first."""
        return self._bound.get(identifier, ())

    async def get(self, identifier: str, address: Contact) -> Peer:
        """The connection of a terminal, which is woken at its address if it holds none (S1901).

        :raises CalleeNotConnected: it can't be reached (S1902)
        """
        peer = self._reached.get(identifier)
        if peer is not None and peer.stream.connected:
            return peer
        return await self._wake(identifier, address)

    async def ask(
        self,
        identifier: str,
        peer: Peer,
        address: Contact,
        message: Message,
        check: Callable[[Peer], object],
    ) -> tuple[Peer, Message]:
        """Ask a terminal, over whichever connection it answers on.

        One that registers by UDP is woken where its connection breaks, or says nothing for
        ``SILENCE``; once it is reached over another it is asked there, and no more on the old one.

        :param peer: the connection over which it is reached
        :param address: what it is woken at
        :param check: called with the other connection, before anything is asked over that; what it
            raises ends it
        :return: the connection over which it has answered, and the answer
        :raises ConnectionLost: the connection has broken, and it can't be woken by UDP
        :raises CalleeNotConnected: it has broken, and the terminal could not be woken
        """
        while True:
            answer = peer.ask(message)
            if peer.key is None:
                return peer, await answer
            question = _Question(identifier, peer, address, answer)
            self._silent.add(question)
            try:
                try:
                    return peer, await answer
                except (ConnectionLost, CancelledError) as error:
                    if isinstance(error, CancelledError) and not question.moved:
                        raise
                peer = await self.get(identifier, address)
            finally:
                self._silent.discard(question)
                question.over()
            check(peer)
            message.fields.pop("Transaction", None)  # of the question before

    def by_line(self, identifier: str) -> Binding:
        """Where a terminal is of whose datagrams none has come: where its connection comes from.

        :raises CalleeNotFound: it holds none, or does not register by UDP
        """
        peer = self.held(identifier)
        if peer is None or peer.key is None:
            raise CalleeNotFound
        host, now = str(seen_ip(peer)), self._clock.seconds()
        return Binding(Contact(host, peer.port, now, DEFAULT_EXPIRES), inf)

    def _fell_silent(self, question: _Question) -> None:
        """There is no answer yet; or it is still to be read, where it is we who are late.

        Then nobody is to be woken, who would make us later still.
        """
        self._clock.callLater(0, self._wake_beside, question)

    def _wake_beside(self, question: _Question) -> None:
        if question.answer.called or self._stopped:
            return
        held = self.held(question.identifier)
        if held is not None and held is not question.peer and held.stream.connected:
            question.came(held)  # by itself, meanwhile
            return
        waking = Deferred.fromCoroutine(self._wake(question.identifier, question.address))
        question.waking = waking.addCallbacks(question.came, self._not_woken)

    def _not_woken(self, failure: Failure) -> None:
        """It can't be, and its old connection may be good all the same."""
        if failure.check(CalleeNotConnected) is None:
            self.log.failure("A silent terminal could not be woken", failure)

    async def _wake(self, identifier: str, address: Contact) -> Peer:
        """Wait for a terminal; those who wait at the same time have it woken once."""
        came: Deferred[Peer] = Deferred()
        self._waiting.setdefault(identifier, []).append(came)
        waking = self._waking.get(identifier)
        if waking is not None:
            waking.waiting.append(came)
        else:
            waking = self._waking[identifier] = _Waking()
            waking.waiting.append(came)
            self._begin(waking, identifier, address)
        try:
            return await came
        except CancelledError:
            raise CalleeNotConnected from None
        finally:
            waiting = self._waiting.get(identifier, [])
            if came in waiting:
                waiting.remove(came)
                if not waiting:
                    del self._waiting[identifier]
            waking.left(came)

    def _begin(self, waking: _Waking, identifier: str, address: Contact) -> None:
        async def wake() -> None:
            try:
                await self._trigger.wake(identifier, address)
            finally:
                del self._waking[identifier]  # whoever comes later has it woken anew

        waking.doing = Deferred.fromCoroutine(wake()).addErrback(waking.failed)

    def stop(self) -> None:
        """Close every connection, and leave no timer behind."""
        self._stopped = True
        self._silent.stop()
        for peer in self.everybody():
            peer.stream.close()


def _name(peer: Peer) -> str:
    if peer.identifier is None:
        raise ValueError("a connection that has not said who it is")
    return peer.identifier
