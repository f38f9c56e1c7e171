"""The resolver in a process of its own, as the mediator holds it: over one link, pipelined.

What is registered is kept here too for as long as a terminal's connection is open, and told to the
resolver again: at half its expiry, once more when the connection closes, and whenever the link was
lost, since the resolver may have forgotten it. So are keys, and they for as long as they are good,
since many a terminal that has one holds no connection.

While the link is up, an address that the resolver has taken from here is in force until it says
otherwise, which it does unasked; so that look-up needs no question.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, inf
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from broker.interfaces import IResolver
from broker.messages.errors import (
    BadRequest,
    CalleeNotFound,
    RegistrationFailed,
    ServiceUnavailable,
)
from broker.messages.framing import Body
from broker.messages.grammar import NOTIFY, QUERY, REGISTER, REQUEST
from broker.messages.message import Malformed, Message
from broker.messages.statements import (
    CALLEE_NOT_CONNECTED,
    CALLEE_NOT_FOUND,
    CONNECTION_REQUESTED,
    LOOKUP,
    PERMISSION_DENIED,
    REGISTRATION_COMPLETED,
    REGISTRATION_FAILED,
    REQUEST_ACCEPTED,
    SUPERSEDED,
)
from broker.net.connection import PeerConnection
from broker.net.dialogue import Dialogue
from broker.net.hub import ConnectionHub
from broker.net.reconnecting import ReconnectingClient
from broker.net.request_task import send_refusal
from broker.net.timers import DeadlineQueue
from broker.resolver.name_lookup import NameLookup
from broker.tables.address_policy import PROVIDER, parse_domain, parse_ip, routable_ip
from broker.tables.locations import AddressRefused, Binding, Contact, Origin
from broker.tables.udp_keys import Key, KeyRefused, KeyTable

#: Seconds in which a question has its answer, the wait for the link included.
ANSWER_SECONDS: Final = 1.0
#: Questions that may wait for their answers (I15).
QUESTIONS_MOST: Final = 10_000
#: Addresses that are told again at a time, so that look-ups don't wait behind them.
BATCH: Final = 64
#: A link over which so many seconds long nothing came, though it was asked, is given up.
SILENT_SECONDS: Final = 3.0
#: Seconds between two attempts to make the link, at the least and at the most.
RETRY_SECONDS: Final = (0.1, 2.0)
#: Seconds between two sweeps of keys that have expired.
PRUNE_INTERVAL: Final = 60.0


class _Question:
    """One question on its way, and what it is waiting for now."""

    __slots__ = ("waiting",)

    def __init__(self) -> None:
        self.waiting: Deferred[Any] | None = None

    def expire(self) -> None:
        """Give up."""
        if self.waiting is not None:
            self.waiting.cancel()


class _Conversation(Dialogue):
    """What is said over the link."""

    __slots__ = ("_heard", "_superseded")

    def __init__(
        self, stream: PeerConnection, heard: Callable[[], None], superseded: Callable[[str], None]
    ) -> None:
        super().__init__(stream, transactions=True)
        self._heard = heard
        self._superseded = superseded

    def message_received(self, message: Message) -> None:
        """An answer came; a resolver asks nothing of a mediator yet."""
        self._heard()
        if message.verb == NOTIFY and message.transaction is not None:
            self.answered(message)
        elif message.verb == NOTIFY:
            if message.statement == SUPERSEDED and "Identifier" in message.fields:
                self._superseded(message.fields["Identifier"])
        else:
            send_refusal(self.asked(message), BadRequest("no request of this kind is known here"))

    def malformed_received(self, malformed: Malformed) -> None:
        """What came is no message: what is no answer leaves its question without one."""
        self.malformed(malformed)

    def body_received(self, body: Body) -> None:
        """No answer has a body."""

    def connection_lost(self, reason: Failure) -> None:
        """The link is gone."""
        self.lost(reason)


@implementer(IResolver)
class RemoteResolver:
    """Asks the resolver at an endpoint."""

    log = Logger()

    def __init__(
        self,
        exchange: ConnectionHub,
        endpoint: IStreamClientEndpoint,
        *,
        jitter: Callable[[], float],
        secret: str | None = None,
        naming: NameLookup | None = None,
    ) -> None:
        """
        :param jitter: as for a ``ReconnectingClient``
        :param secret: what the resolver wants a mediator to show
        :param naming: finds out what was registered by domain name; without it, none is taken
        """
        self._clock = exchange.clock
        self._naming = NameLookup(exchange.clock) if naming is None else naming
        self._secret = secret
        self._refused = False  # and logged
        self._puzzled = False  # and logged
        least, most = RETRY_SECONDS
        self._link: ReconnectingClient[_Conversation] = ReconnectingClient(
            endpoint,
            exchange,
            lambda stream: _Conversation(stream, self._heard, self._sure.discard),
            prepare=self._introduce,
            up=lambda _: self._tell_again(),
            down=self._is_down,
            jitter=jitter,
            initial=least,
            most=most,
            patience=SILENT_SECONDS,
        )
        self._questions: DeadlineQueue[_Question] = DeadlineQueue(
            self._clock, ANSWER_SECONDS, self._expired
        )
        self._asked_since = -1.0  # when the oldest question after the last answer was sent
        # Addresses whose connection is open, and those whose connection is gone: until when.
        self._held: dict[str, Contact] = {}
        #: Those held whose address the resolver has taken, and not said to be superseded since.
        self._sure: set[str] = set()
        self._left: dict[str, Binding] = {}
        # Keys, of connections that are open and of those that are gone; and the terminals none of
        # whose keys may be good at the resolver but those that are here.
        self._keys = KeyTable()
        self._void: set[str] = set()
        self._pruning = LoopingCall(lambda: self._keys.prune(self._clock.seconds()))
        self._pruning.clock = exchange.clock
        #: What the resolver is still to be told of; whether it must forget it first, because it
        #: may have recorded what we have refused.
        self._owed: dict[str, bool] = {}
        self._telling: dict[_Question, str] = {}
        self._fresh: dict[float, DeadlineQueue[str]] = {}  # by how long they are

    def start(self) -> None:
        """Connect to the resolver."""
        self._link.startService()
        self._pruning.start(PRUNE_INTERVAL, now=False)

    def stop(self) -> Deferred[None]:
        """Leave it, and leave no timer behind; fires when the link is closed."""
        stopped = self._link.stopService()
        self._questions.stop()
        self._naming.stop()
        if self._pruning.running:
            self._pruning.stop()
        for deadlines in self._fresh.values():
            deadlines.stop()
        return stopped

    # As the mediator asks it.

    async def register(self, identifier: str, address: Contact) -> None:
        """Pass an address on; it holds until it is released.

        A domain name is looked up here first; it is the resolver that asks the provider.
        """
        if address.origin is not None and address.host != PROVIDER:
            await self._naming.check(identifier, address)
        else:
            self._naming.overtake(identifier)
        answer = await self._ask(identifier, _registration(identifier, address), undo=True)
        if answer.statement == REGISTRATION_FAILED:
            raise RegistrationFailed(answer.get("Cause") or "")
        if answer.statement != REGISTRATION_COMPLETED:
            raise self._no_answer(answer)
        self._left.pop(identifier, None)
        self._held[identifier] = address
        self._sure.add(identifier)
        self._is_fresh(identifier)
        if identifier in self._telling.values():  # and may come to be undone behind this
            self._owe(identifier)

    def release(self, identifier: str, address: Contact) -> None:
        """The connection that registered this address is gone: tell it once more."""
        if self._held.get(identifier) is not address:
            return
        self._forget(identifier)
        self._left[identifier] = Binding(address, self._clock.seconds() + address.expires)
        self._owe(identifier)

    async def withdraw(self, identifier: str) -> None:
        """Have an address forgotten."""
        self._naming.overtake(identifier)
        answer = await self._ask(identifier, _withdrawal(identifier), undo=False)
        if answer.statement != REGISTRATION_COMPLETED:
            raise self._no_answer(answer)
        self._forget(identifier)
        self._left.pop(identifier, None)

    async def lookup(self, identifier: str) -> Binding:
        """Fig. 8, over the link; or without it, where the resolver's answer is known."""
        if identifier in self._sure:
            held = self._held[identifier]
            if held.origin is None:
                return Binding(held, inf)
        return await self._find(identifier)

    async def _find(self, identifier: str) -> Binding:
        """The address of a terminal, where it isn't known to be an IP address and in force."""
        while True:
            known = self._known(identifier) is not None
            place = self._known(identifier) or await self._told(identifier)
            address = place.contact
            if address.origin is None:
                return place
            told = await self._naming.told(identifier, address)
            now = self._known(identifier)
            if not known if now is None else now.contact is address:
                return Binding(told, place.until)

    async def kept(self, identifier: str) -> Binding:
        """The address as it was registered."""
        if identifier in self._sure:
            return Binding(self._held[identifier], inf)
        return await self._told(identifier, registered=True)

    async def add_key(
        self, identifier: str, key_id: str, key: bytes, port: int, expires: int
    ) -> None:
        """Hand a key over, and keep it to tell it again."""
        kept = Key(key_id, identifier, key, port, expires)
        answer = await self._ask(identifier, _handing(kept, expires))
        if answer.statement == REGISTRATION_FAILED:
            raise RegistrationFailed(answer.get("Cause") or "")
        if answer.statement != REGISTRATION_COMPLETED:
            raise self._no_answer(answer)
        try:
            self._keys.add(kept)
        except KeyRefused as error:
            raise RegistrationFailed(str(error)) from None
        self._is_fresh(identifier)

    def release_key(self, identifier: str, key_id: str) -> None:
        """The connection of a key is gone: tell it once more."""
        now = self._clock.seconds()
        if self._keys.get(key_id, now) is not None:
            self._keys.release(key_id, now)
            self._is_fresh(identifier)
            self._owe(identifier)

    def drop_keys(self, identifier: str) -> None:
        """No key is good any more, here or there; at the resolver as soon as it can be told."""
        for key in self._keys.of(identifier, self._clock.seconds()):
            self._keys.drop(key)
        self._is_fresh(identifier)
        self._void.add(identifier)
        self._owe(identifier)

    async def trigger(self, identifier: str) -> bool:
        """Have a terminal asked to connect."""
        message = Message.of(REQUEST, {"": CONNECTION_REQUESTED, "Callee": identifier})
        answer = await self._ask(identifier, message)
        if answer.statement not in (REQUEST_ACCEPTED, CALLEE_NOT_CONNECTED):
            raise self._no_answer(answer)
        return answer.statement == REQUEST_ACCEPTED

    async def _told(self, identifier: str, *, registered: bool = False) -> Binding:
        """What the resolver says.

        :param registered: where datagrams come from is not meant
        """
        question = Message.of(QUERY, {"": LOOKUP, "Callee": identifier})
        answer = await self._ask(identifier, question)
        if answer.statement == CALLEE_NOT_FOUND or (registered and "UDP" in answer.fields):
            raise CalleeNotFound
        return self._place(identifier, answer)

    def _known(self, identifier: str) -> Binding | None:
        """The address in force, where the resolver need not be asked.

        Where the provider says that a terminal is, only the resolver knows.
        """
        held = self._held[identifier] if identifier in self._sure else None
        return None if held is None or held.host == PROVIDER else Binding(held, inf)

    @property
    def held(self) -> int:
        """How many addresses are held here."""
        return len(self._held)

    # Questions.

    async def _ask(self, identifier: str, message: Message, *, undo: bool | None = None) -> Message:
        """Ask, and wait a second for the answer at the most, for the link and for it together.

        :param undo: the message is a change, which may have been made though no answer says so:
            have it undone by a withdrawal (true), or by telling what holds again (false)
        :raises ServiceUnavailable: there is no answer
        """
        if len(self._questions) >= QUESTIONS_MOST:
            raise ServiceUnavailable
        question = _Question()
        self._questions.add(question)
        asked = False
        try:
            conversation = self._link.conversation
            if conversation is None:
                question.waiting = waiting = self._link.wait()
                conversation = await waiting
            if identifier in self._owed:  # what was to be told comes first
                self._tell(conversation, identifier)
            asked = True
            question.waiting = answering = self._send(conversation, message)
            return await answering
        except (CancelledError, ConnectionLost):
            if asked and undo is not None:
                self._owe(identifier, undo=undo)
            raise ServiceUnavailable from None
        finally:
            self._questions.discard(question)

    def _send(self, conversation: Dialogue, message: Message) -> Deferred[Message]:
        if self._asked_since < 0:
            self._asked_since = self._clock.seconds()
        return conversation.ask(message)

    def _heard(self) -> None:
        self._asked_since = -1.0

    def _expired(self, question: _Question) -> None:
        conversation = self._link.conversation
        if (
            conversation is not None
            and 0 <= self._asked_since <= self._clock.seconds() - SILENT_SECONDS
        ):
            self.log.warn("The resolver has fallen silent; the link is made anew")
            conversation.stream.abort()
        question.expire()

    def _no_answer(self, answer: Message) -> ServiceUnavailable:
        if not self._puzzled:
            self._puzzled = True
            self.log.warn("The resolver gave an answer of no use: {answer}", answer=answer)
        return ServiceUnavailable()

    def _place(self, identifier: str, answer: Message) -> Binding:
        """The address that an answer tells, judged as any other (I12)."""
        fields = answer.fields
        held = self._held.get(identifier)
        if (
            held is not None
            and held.host == fields.get("Callee Address")
            and str(held.port) == fields.get("Callee Port")
        ):
            return Binding(held, inf)  # the connection is open, as we know best
        try:
            name = parse_domain(fields["Callee Address"])
            if name is None or name == PROVIDER:
                host, origin = str(routable_ip(fields["Callee Address"])), None
            else:
                host, origin = name, Origin(str(parse_ip(fields["Source"])))
            port = int(fields["Callee Port"])
            expires = int(fields["Expires"])
        except (KeyError, AddressRefused):
            raise self._no_answer(answer) from None
        now = self._clock.seconds()
        address = Contact(host, port, now, expires, "Dial" in fields, origin)
        return Binding(address, now + expires)

    # What the resolver must be told.

    async def _introduce(self, conversation: _Conversation) -> None:
        """Say that this is a mediator, before anything else is asked."""
        message = Message(REGISTER, Role="Mediator")
        if self._secret is not None:
            message.fields["Password"] = self._secret
        answer = await conversation.ask(message)
        if answer.statement == REGISTRATION_COMPLETED:
            self._refused = self._puzzled = False
            return
        if not self._refused:
            self._refused = True
            why = (
                "its secret is another than ours, or it wants a certificate that it lists,"
                " or mediators on its own machine only"
                if answer.statement == PERMISSION_DENIED
                else f"it says {answer!r}"
            )
            self.log.error("The resolver does not take this mediator's link: {why}", why=why)
        raise ServiceUnavailable("the resolver refused the link")

    def _tell_again(self) -> None:
        """The link is up: the resolver may have forgotten everything."""
        for identifier in self._held:
            self._owed.setdefault(identifier, False)
        for key in self._keys:
            self._owed.setdefault(key.identifier, False)
        self._tell_some()

    def _owe(self, identifier: str, *, undo: bool = False) -> None:
        self._owed[identifier] = undo or self._owed.get(identifier, False)
        self._tell_some()

    def _tell_some(self) -> None:
        while self._owed and len(self._telling) < BATCH:
            conversation = self._link.conversation
            if conversation is None or not conversation.stream.connected:
                return
            self._tell(conversation, next(iter(self._owed)))

    def _tell(self, conversation: Dialogue, identifier: str) -> None:
        """Tell the resolver what holds now of one terminal."""
        if self._owed.pop(identifier):
            self._order(conversation, identifier, _withdrawal(identifier), undo=True)
        now = self._clock.seconds()
        self._tell_keys(conversation, identifier, now)
        address = self._held.get(identifier)
        if address is not None:
            self._order(conversation, identifier, _registration(identifier, address, now))
            return
        left = self._left.pop(identifier, None)
        if left is not None and left.until - now >= 1:
            message = _registration(identifier, left.contact, now, int(left.until - now))
            self._order(conversation, identifier, message, left=left)

    def _tell_keys(self, conversation: Dialogue, identifier: str, now: float) -> None:
        """Tell the resolver which keys of a terminal are good."""
        if identifier in self._void:
            self._void.discard(identifier)
            self._order(conversation, identifier, _dropping(identifier), void=True)
        for key in self._keys.of(identifier, now):
            lasts = key.expires if key.until == inf else int(key.until - now)
            if lasts >= 1:
                self._order(conversation, identifier, _handing(key, lasts), key=True)
                self._is_fresh(identifier)

    def _order(
        self,
        conversation: Dialogue,
        identifier: str,
        message: Message,
        *,
        undo: bool = False,
        left: Binding | None = None,
        key: bool = False,
        void: bool = False,
    ) -> None:
        """Tell the resolver one thing; if no answer comes, it is still to be told.

        :param undo: it is a withdrawal
        :param left: it is this address, whose connection is gone
        :param key: it is a key
        :param void: it is that no key is good
        """
        question = _Question()
        question.waiting = answering = self._send(conversation, message)
        self._questions.add(question)
        self._telling[question] = identifier

        def over(answer: Message | Failure) -> None:
            self._questions.discard(question)
            del self._telling[question]
            address = self._held.get(identifier)
            if isinstance(answer, Failure):
                self._owed[identifier] = undo or self._owed.get(identifier, False)
                if left is not None and address is None:
                    self._left.setdefault(identifier, left)
                if void:
                    self._void.add(identifier)
            elif address is not None and not (undo or key or void):
                if answer.statement == REGISTRATION_COMPLETED:
                    self._sure.add(identifier)
                self._is_fresh(identifier)
            self._tell_some()

        answering.addBoth(over)

    def _is_fresh(self, identifier: str) -> None:
        """Tell what is held again in good time: after a quarter to the half of its expiry."""
        address = self._held.get(identifier)
        lasts = [key.expires for key in self._keys.of(identifier, -inf) if key.until == inf]
        if address is not None:
            lasts.append(address.expires)
        if not lasts:
            self._is_stale(identifier)
            return
        seconds = 2.0 ** (min(lasts).bit_length() - 2)
        fresh = self._fresh.get(seconds)
        if fresh is None:
            fresh = self._fresh[seconds] = DeadlineQueue(self._clock, seconds, self._owe)
        for other in self._fresh.values():
            if other is not fresh:
                other.discard(identifier)
        fresh.add(identifier)

    def _is_down(self, _: _Conversation) -> None:
        self._sure.clear()
        if self._link.running:
            self.log.warn("The link to the resolver is lost")

    def _forget(self, identifier: str) -> None:
        self._held.pop(identifier, None)
        self._sure.discard(identifier)
        self._is_fresh(identifier)

    def _is_stale(self, identifier: str) -> None:
        for fresh in self._fresh.values():
            fresh.discard(identifier)


def _withdrawal(identifier: str) -> Message:
    return Message(REGISTER, Identifier=identifier, Expires=0)


def _dropping(identifier: str) -> Message:
    """The message that says that no key of a terminal is good."""
    return Message(REGISTER, Identifier=identifier, UDP="Yes", Expires=0)


def _handing(key: Key, lasts: int) -> Message:
    """The message that hands a key over; it is good for so many seconds from now on."""
    message = Message(REGISTER, Identifier=key.identifier, Port=key.port, Expires=lasts)
    message.fields["Key ID"] = key.name
    message.fields["Registration Key"] = key.secret.hex()
    return message


def _registration(
    identifier: str, address: Contact, now: float | None = None, expires: int = 0
) -> Message:
    """The message that registers an address.

    :param now: tell how old it is, so that it replaces no newer one; it is new without
    :param expires: seconds for which it holds from now on, where its own no longer say it
    """
    message = Message(
        REGISTER,
        Identifier=identifier,
        Address=address.host,
        Port=address.port,
        Expires=expires or address.expires,
    )
    if now is not None:
        message.fields["Age"] = str(max(0, ceil(now - address.registered)))
    if address.dialable:
        message.fields["Dial"] = "Yes"
    if address.origin is not None:
        message.fields["Source"] = address.origin.source
    return message
