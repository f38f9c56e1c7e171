"""One call over a connection to the mediator that is made for it: what the command does.

The ports that are opened take no calls; they wait for the callee, and close with the call.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from twisted.internet.interfaces import IProtocol, IProtocolFactory

from broker.net.hub import Trace
from broker.terminal.calls.callee_port import CalleePort
from broker.terminal.calls.place_call import CallContext, dialling_hub, place_call
from broker.terminal.calls.wait_for_callee import ConnectBackWaiter
from broker.terminal.channel.active_calls import ActiveCalls
from broker.terminal.incoming.listener import InboundConnection, InboundListener
from broker.terminal.incoming.pending_calls import PendingCalls
from broker.terminal.registration.client import MediatorClient, NullEvents


async def place_call_back(
    reactor: Any,
    client: MediatorClient,
    callee: str,
    factory: IProtocolFactory,
    *,
    password: str,
    port: CalleePort,
    trace: Trace | None = None,
) -> IProtocol:
    """Ask a callee to connect to us, by its call password; as ``ConnectBackWaiter.call``.

    :param reactor: an ``IReactorTCP`` and ``IReactorTime``
    """
    with _waiter(reactor, client, trace) as (waiter, _):
        return await waiter.call(client, callee, factory, password, port)


async def place_one_call(
    reactor: Any,
    client: MediatorClient,
    callee: str,
    factory: IProtocolFactory,
    *,
    port: CalleePort,
    trace: Trace | None = None,
) -> IProtocol:
    """Call a terminal by all candidates; as ``place_call``.

    :param port: where the callee may connect to us, if it can be reached from outside
    """
    with _waiter(reactor, client, trace) as (waiter, calls):
        offer = None
        if client.share_port() is not None:  # else both are within one machine
            offer = await waiter.offer(client, port)
        context = CallContext(reactor, client, calls, dialling_hub(reactor, trace))
        return await place_call(context, callee, factory, seen=True, offer=offer)


@contextmanager
def _waiter(
    reactor: Any, client: MediatorClient, trace: Trace | None
) -> Iterator[tuple[ConnectBackWaiter, ActiveCalls]]:
    calls = ActiveCalls(client)
    events = _OneCall(client, calls)
    listener = InboundListener(
        reactor, client.identifier, PendingCalls(), calls, events, handler=None, trace=trace
    )
    events.waiter = ConnectBackWaiter(reactor, listener, calls)
    client.events = events  # for as long as the call may last
    try:
        yield events.waiter, calls
    finally:
        listener.stop()


class _OneCall(NullEvents):
    """For a connection that only calls one callee, or waits for it: takes no call.

    :ivar waiter: what waits for the callee
    """

    waiter: ConnectBackWaiter

    def __init__(self, client: MediatorClient, calls: ActiveCalls) -> None:
        self._client = client
        self._calls = calls

    # From the mediator.

    def session_terminated(self, session: str, how: str | None = None) -> None:
        """The session has ended: the callee is not called, and does not connect."""
        self._calls.terminate(session)
        self.waiter.terminated(session, how)

    # From the listener.

    def has_room(self) -> bool:
        """There is no application for calls."""
        return False

    def woken(self) -> None:
        """The connection to the mediator is open already."""

    def began(self, session: str) -> None:
        """Report it."""
        self._client.began(session)

    def connected_back(self, inbound: InboundConnection, session: str) -> None:
        """Perhaps the callee."""
        self.waiter.connected_back(inbound, session)
