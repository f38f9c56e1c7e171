"""Two channels of one call, joined in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IProtocol
from twisted.internet.task import Clock

from broker.messages.grammar import NOTIFY, REQUEST
from broker.messages.message import Message
from broker.messages.statements import REQUEST_ACCEPTED
from broker.terminal.channel.channel import Channel, ChannelParties
from broker.terminal.channel.handshake import Handshake
from broker.terminal.channel.records import Records
from tests.support.transport import Pair, connect_both
from tests.terminal.speakers import Owner

SESSION = "S1"
CALLER = "Ia"
CALLEE = "Ib"
KEY = "07" * 32


def join(
    clock: Clock,
    caller: Callable[[], IProtocol | None],
    callee: Callable[[], IProtocol | None],
    *,
    chunk: int | None = None,
) -> Pair:
    """A call whose handshake is over: the caller's channel is the pair's ``a``.

    :param caller: gives the protocol of each side when its channel is open
    :param chunk: bytes that arrive at a time
    """
    initiator = Handshake(SESSION, CALLER, CALLEE, KEY, initiator=True)
    responder = Handshake(SESSION, CALLER, CALLEE, KEY, initiator=False)
    responder.read(initiator.write(Message(REQUEST, Identifier=CALLER)))
    initiator.read(responder.write(Message(NOTIFY, REQUEST_ACCEPTED)))

    def channel(handshake: Handshake, opened: Callable[[], IProtocol | None]) -> Any:
        is_caller = handshake is initiator
        names = (CALLER, CALLEE) if is_caller else (CALLEE, CALLER)
        parties = ChannelParties(*names, SESSION, is_caller)
        return Channel(clock, Records(handshake.cipher()), parties, Owner(opened))

    return connect_both(channel(initiator, caller), channel(responder, callee), clock, chunk=chunk)
