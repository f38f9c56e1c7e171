"""What the resolver in another process must be told of each terminal, and when.

What was registered is kept here too, and told to the resolver again: at half its expiry, once more
when the terminal's connection closes, and whenever the link was lost, since the resolver may have
forgotten it. Keys as well, for as long as they are valid: many a terminal that has one holds no
connection.
"""

from __future__ import annotations

from enum import Enum
from functools import partial
from math import ceil, inf
from typing import Final

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from broker.messages.grammar import REGISTER
from broker.messages.message import Message
from broker.messages.statements import REGISTRATION_COMPLETED
from broker.net.dialogue import Dialogue
from broker.net.timers import DeadlineQueue
from broker.resolver.link import ResolverLink
from broker.tables.locations import Binding, Contact
from broker.tables.udp_keys import UdpKey, UdpKeyTable

#: Orders under way at a time, so that look-ups don't wait behind them.
BATCH: Final = 64
#: Seconds between two sweeps of keys that have expired.
PRUNE_INTERVAL: Final = 60.0


class ReplicatedTerminal:
    """What the resolver has been told, or must still be told, of one terminal.

    :ivar contact: its contact, while the connection that registered it is open
    :ivar in_force: the resolver has accepted this contact, and has not said since that it is
        superseded: a look-up needs no question
    :ivar closed: the contact of a connection that is gone, until the resolver knows that
    :ivar drop_keys: the resolver must still be told to drop its keys
    :ivar undo: the resolver must first be told to forget the contact, because it may have recorded
        one that we refused
    :ivar orders: how many orders about it have no answer yet
    :ivar refresh: the queue after whose time it is told again
    """

    __slots__ = ("closed", "contact", "drop_keys", "in_force", "orders", "refresh", "undo")

    def __init__(self) -> None:
        self.contact: Contact | None = None
        self.closed: Binding | None = None
        self.in_force = False
        self.drop_keys = False
        self.undo = False
        self.orders = 0
        self.refresh: DeadlineQueue[str] | None = None


class _Order(Enum):
    """What the resolver is told of a terminal."""

    FORGET = "forget its contact"
    CONTACT = "its contact"
    CLOSED = "a contact whose connection is gone"
    DROP_KEYS = "drop its keys"
    KEY = "a key"


class Replication:
    """Keeps the resolver at the other end of a link informed.

    :ivar terminals: what is kept of each terminal, by identifier
    :ivar keys: the valid keys of all terminals
    """

    def __init__(self, clock: IReactorTime, link: ResolverLink) -> None:
        self.terminals: dict[str, ReplicatedTerminal] = {}
        self.keys = UdpKeyTable()
        self._clock = clock
        self._link = link
        #: The terminals of which the resolver must be told something, oldest first.
        self._owed: dict[str, ReplicatedTerminal] = {}
        self._orders = 0  # without an answer, of all terminals
        self._refreshes: dict[float, DeadlineQueue[str]] = {}  # by their length in seconds
        self._pruning = LoopingCall(lambda: self.keys.prune(clock.seconds()))
        self._pruning.clock = clock

    def start(self) -> None:
        """Begin to sweep keys that have expired."""
        self._pruning.start(PRUNE_INTERVAL, now=False)

    def stop(self) -> None:
        """Leave no timer behind."""
        if self._pruning.running:
            self._pruning.stop()
        for refresh in self._refreshes.values():
            refresh.stop()

    @property
    def contacts(self) -> int:
        """How many terminals have a contact whose connection is open."""
        return sum(terminal.contact is not None for terminal in self.terminals.values())

    # What has changed.

    def registered(self, identifier: str, contact: Contact) -> None:
        """The resolver has accepted a contact whose connection is open."""
        terminal = self._terminal(identifier)
        terminal.closed = None
        terminal.contact = contact
        terminal.in_force = True
        self._refresh_later(identifier, terminal)
        if terminal.orders:  # one of them may fail, and so undo this
            self.owe(identifier)

    def released(self, identifier: str, contact: Contact) -> None:
        """The connection that registered a contact is gone: tell it once more, to let it expire."""
        terminal = self.terminals.get(identifier)
        if terminal is None or terminal.contact is not contact:
            return
        self._forget_contact(identifier, terminal)
        terminal.closed = Binding(contact, self._clock.seconds() + contact.expires)
        self.owe(identifier)

    def withdrawn(self, identifier: str) -> None:
        """The resolver has forgotten a contact."""
        terminal = self.terminals.get(identifier)
        if terminal is not None:
            terminal.closed = None
            self._forget_contact(identifier, terminal)
            self._drop_if_empty(identifier, terminal)

    def superseded(self, identifier: str) -> None:
        """The resolver says that a contact is not in force now."""
        terminal = self.terminals.get(identifier)
        if terminal is not None:
            terminal.in_force = False

    def add_key(self, key: UdpKey) -> None:
        """The resolver has accepted a key.

        :raises KeyRefused: there is no room for it here
        """
        self.keys.add(key)
        self._refresh_later(key.identifier, self._terminal(key.identifier))

    def release_key(self, identifier: str, key_id: str) -> None:
        """The connection of a key is gone: tell it once more, to let it expire."""
        now = self._clock.seconds()
        if self.keys.get(key_id, now) is not None:
            self.keys.release(key_id, now)
            self._refresh_later(identifier, self._terminal(identifier))
            self.owe(identifier)

    def drop_keys(self, identifier: str) -> None:
        """No key of a terminal is valid from now on; tell it as soon as the link allows."""
        for key in self.keys.of(identifier, self._clock.seconds()):
            self.keys.drop(key)
        terminal = self._terminal(identifier)
        self._refresh_later(identifier, terminal)
        terminal.drop_keys = True
        self.owe(identifier)

    # Telling the resolver.

    def link_lost(self) -> None:
        """Until the link is up, it is not known what the resolver holds."""
        for terminal in self.terminals.values():
            terminal.in_force = False

    def tell_everything(self) -> None:
        """The link is up: the resolver may have forgotten everything."""
        for identifier, terminal in self.terminals.items():
            if terminal.contact is not None:
                self._owed.setdefault(identifier, terminal)
        for key in self.keys:
            self._owed.setdefault(key.identifier, self._terminal(key.identifier))
        self._tell_some()

    def owe(self, identifier: str, *, undo: bool = False) -> None:
        """Tell the resolver what holds of a terminal, now or once the link is up.

        :param undo: it must forget the contact first
        """
        terminal = self._terminal(identifier)
        terminal.undo = terminal.undo or undo
        self._owed.setdefault(identifier, terminal)
        self._tell_some()

    def tell_first(self, dialogue: Dialogue, identifier: str) -> None:
        """Before a question about a terminal: tell what is still owed of it."""
        if identifier in self._owed:
            self._tell(dialogue, identifier)

    def _tell_some(self) -> None:
        while self._owed and self._orders < BATCH:
            dialogue = self._link.dialogue
            if dialogue is None or not dialogue.stream.connected:
                return
            self._tell(dialogue, next(iter(self._owed)))

    def _tell(self, dialogue: Dialogue, identifier: str) -> None:
        """Tell the resolver what holds now of one terminal."""
        terminal = self._owed.pop(identifier)
        order = partial(self._order, dialogue, identifier, terminal)
        if terminal.undo:
            terminal.undo = False
            order(_Order.FORGET, withdrawal(identifier))
        now = self._clock.seconds()
        if terminal.drop_keys:
            terminal.drop_keys = False
            order(_Order.DROP_KEYS, _keys_dropped(identifier))
        for key in self.keys.of(identifier, now):
            lasts = key.expires if key.until == inf else int(key.until - now)
            if lasts >= 1:
                order(_Order.KEY, key_handover(key, lasts))
                self._refresh_later(identifier, terminal)
        if terminal.contact is not None:
            order(_Order.CONTACT, registration(identifier, terminal.contact, now))
            return
        closed, terminal.closed = terminal.closed, None
        if closed is not None and closed.until - now >= 1:
            message = registration(identifier, closed.contact, now, int(closed.until - now))
            order(_Order.CLOSED, message, closed)
        self._drop_if_empty(identifier, terminal)

    def _order(
        self,
        dialogue: Dialogue,
        identifier: str,
        terminal: ReplicatedTerminal,
        kind: _Order,
        message: Message,
        closed: Binding | None = None,
    ) -> None:
        """Tell the resolver one thing; if no answer comes, it is owed again."""
        question = self._link.open_question()
        question.waiting = answering = self._link.send(dialogue, message)
        terminal.orders += 1
        self._orders += 1

        def answered(answer: Message | Failure) -> None:
            self._link.questions.discard(question)
            terminal.orders -= 1
            self._orders -= 1
            if isinstance(answer, Failure):
                self._order_failed(identifier, terminal, kind, closed)
            elif terminal.contact is not None and kind in (_Order.CONTACT, _Order.CLOSED):
                if answer.statement == REGISTRATION_COMPLETED:
                    terminal.in_force = True
                self._refresh_later(identifier, terminal)
            self._drop_if_empty(identifier, terminal)
            self._tell_some()

        answering.addBoth(answered)

    def _order_failed(
        self, identifier: str, terminal: ReplicatedTerminal, kind: _Order, closed: Binding | None
    ) -> None:
        if kind is _Order.FORGET:
            terminal.undo = True
        elif kind is _Order.DROP_KEYS:
            terminal.drop_keys = True
        elif kind is _Order.CLOSED and terminal.contact is None and terminal.closed is None:
            terminal.closed = closed
        self._owed.setdefault(identifier, terminal)

    # Inside.

    def _terminal(self, identifier: str) -> ReplicatedTerminal:
        terminal = self.terminals.get(identifier)
        if terminal is None:
            terminal = self.terminals[identifier] = ReplicatedTerminal()
        return terminal

    def _drop_if_empty(self, identifier: str, terminal: ReplicatedTerminal) -> None:
        """Keep no record that says nothing. One that is owed or ordered is still needed."""
        if (
            terminal.contact is None
            and terminal.closed is None
            and terminal.refresh is None
            and not terminal.orders
            and identifier not in self._owed
            and self.terminals.get(identifier) is terminal
        ):
            del self.terminals[identifier]

    def _forget_contact(self, identifier: str, terminal: ReplicatedTerminal) -> None:
        terminal.contact = None
        terminal.in_force = False
        self._refresh_later(identifier, terminal)

    def _refresh_later(self, identifier: str, terminal: ReplicatedTerminal) -> None:
        """Tell the resolver again in time: after a quarter to a half of the shortest expiry."""
        lasts = [key.expires for key in self.keys.of(identifier, -inf) if key.until == inf]
        if terminal.contact is not None:
            lasts.append(terminal.contact.expires)
        refresh = None
        if lasts:
            # A power of two, so that a few queues serve all.
            seconds = 2.0 ** (min(lasts).bit_length() - 2)
            refresh = self._refreshes.get(seconds)
            if refresh is None:
                refresh = DeadlineQueue(self._clock, seconds, self.owe)
                self._refreshes[seconds] = refresh
        if terminal.refresh is not None and terminal.refresh is not refresh:
            terminal.refresh.discard(identifier)
        terminal.refresh = refresh
        if refresh is not None:
            refresh.add(identifier)


# The messages.


def withdrawal(identifier: str) -> Message:
    """The message that has a contact forgotten."""
    return Message(REGISTER, Identifier=identifier, Expires=0)


def _keys_dropped(identifier: str) -> Message:
    """The message that says that no key of a terminal is valid."""
    return Message(REGISTER, Identifier=identifier, UDP="Yes", Expires=0)


def key_handover(key: UdpKey, lasts: int) -> Message:
    """The message that hands a key over, valid for ``lasts`` seconds from now on."""
    message = Message(REGISTER, Identifier=key.identifier, Port=key.port, Expires=lasts)
    message.fields["Key ID"] = key.name
    message.fields["Registration Key"] = key.secret.hex()
    return message


def registration(
    identifier: str, contact: Contact, now: float | None = None, expires: int = 0
) -> Message:
    """The message that registers a contact.

    :param now: say how old the contact is, so that it replaces no newer one; without, it is new
    :param expires: seconds for which it holds from now on, where that is not its own expiry
    """
    message = Message(
        REGISTER,
        Identifier=identifier,
        Address=contact.host,
        Port=contact.port,
        Expires=expires or contact.expires,
    )
    if now is not None:
        message.fields["Age"] = str(max(0, ceil(now - contact.registered)))
    if contact.dialable:
        message.fields["Dial"] = "Yes"
    if contact.origin is not None:
        message.fields["Source"] = contact.origin.source
    return message
