"""Who a connection acts as: how that is proven (A19, I4)."""

from __future__ import annotations

from typing import Protocol

from broker.mediator.peer import Peer
from broker.wire.message import Message
from broker.wire.refusals import LoginRequired


class Login(Protocol):
    """A way to prove who one is; a connection acts as nobody until it has."""

    async def admit(self, peer: Peer, message: Message) -> str:
        """Find out who speaks on a connection that is bound to nobody.

        :param message: its first request
        :return: the identifier that it acts as from now on
        :raises Refused: it has proven nothing: nothing changes, and it is bound to nobody
        """
        ...


class Anybody:
    """``--auth none``: whoever says so is believed."""

    async def admit(self, peer: Peer, message: Message) -> str:
        """Believe it."""
        named = message.fields.get("Identifier")
        if named is None:
            raise LoginRequired("say who you are: REGISTER with an Identifier")
        return named
