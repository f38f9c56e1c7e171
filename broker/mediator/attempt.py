"""The steps that every kind of call shares: check, locate, reach, ask, recheck, record, tell.

A kind of call is a subclass that says in ``check`` what authorizes it (a permit, the callee's
consent, its call password), and a handler that takes the steps in the order of its figure. While a
step waits, anything may change: the permit is withdrawn, the callee moves, the caller goes. So
``recheck`` repeats, in the turn in which both sides are told, what the steps before it found.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from typing import NewType

from broker.mediator.connection import TerminalConnection, canonical_identifier_field
from broker.mediator.context import MediatorContext
from broker.mediator.permits import PermitUse
from broker.messages.errors import CalleeNotConnected, CalleeNotFound, ServiceUnavailable
from broker.messages.message import Message
from broker.messages.statements import REQUEST_ACCEPTED
from broker.net.dialogue import Request
from broker.tables.disclosures import Disclosure
from broker.tables.grants import SessionCredentials
from broker.tables.locations import Binding

#: What ``recheck`` returns and ``tell`` takes: the permit entry, or what stands in its place
#: (``Session.permit_entry``), as found in this turn of the reactor. Nothing is awaited between the
#: two: hold it over an ``await``, and it is a lie (I1, I2).
StillPermitted = NewType("StillPermitted", str)


class CallAttempt:
    """One attempt of a caller to reach a callee.

    :ivar caller: its identifier
    :ivar callee: its identifier
    :ivar caller_connection: the connection over which the caller asks
    :ivar request: what it asks
    :ivar binding: where the callee is (``locate``)
    :ivar located_at: the registry's number when that was looked up
    :ivar callee_connection: the connection over which the callee is reached (``reach``)
    :ivar credentials: what opens the session; drawn once it is permitted
    :ivar use: the use of a permit that allows a number of calls, once it is taken
    :ivar durable_entry: the permit entry that something durable names: a use, or a disclosure
    """

    __slots__ = (
        "binding",
        "callee",
        "callee_connection",
        "caller",
        "caller_connection",
        "context",
        "credentials",
        "durable_entry",
        "located_at",
        "request",
        "use",
    )

    binding: Binding
    callee_connection: TerminalConnection
    credentials: SessionCredentials
    located_at: int

    def __init__(
        self, context: MediatorContext, caller: TerminalConnection, callee: str, request: Request
    ) -> None:
        self.context = context
        self.caller = caller.identifier
        self.callee = callee
        self.caller_connection = caller
        self.request = request
        self.use: PermitUse | None = None
        self.durable_entry: str | None = None

    # Before the callee is asked.

    def check(self) -> str:
        """See that the callee accepts this caller now (S1203).

        :return: the permit entry, or what stands in its place (``Session.permit_entry``)
        :raises PermissionDenied: it does not
        """
        raise NotImplementedError

    def check_quota(self) -> None:
        """See that the caller may be granted one more session.

        :raises TooManyRequests: too many of its sessions have not begun
        """
        self.context.sessions.check_session_quota(self.caller, self.callee)

    async def locate(self) -> None:
        """Look up where the callee is (S1204, S1205).

        :raises CalleeNotFound: it is not known
        :raises ServiceUnavailable: the resolver does not answer
        """
        context = self.context
        self.located_at = context.connections.last_registration
        try:  # ``locate`` below, in place: one more coroutine would cost every call a percent
            self.binding = await context.resolver.lookup(self.callee)
        except CalleeNotFound:
            self.binding = context.connections.source_of(self.callee)

    async def reach(self) -> None:
        """Get the callee's connection, waking it if it has none (S1901, S1902; D4, D5).

        :raises CalleeNotConnected: it can't be reached
        """
        context = self.context
        usable = context.connections.usable(self.callee)
        if usable is None:
            usable = await context.reach.wake(self.callee, self.binding.contact)
        self.callee_connection = usable

    def ask(self, question: Message) -> Awaitable[Message]:
        """Ask the callee, over whichever connection it answers on (S1606; S2002; D6).

        :raises ConnectionLost: its connection broke, and it can't be woken by UDP
        :raises CalleeNotConnected: it broke, and the callee could not be woken
        """
        return self.context.reach.ask(
            self.callee, self.callee_connection, self.binding.contact, question, self
        )

    def moved(self, connection: TerminalConnection) -> None:
        """The callee is asked over another connection now, if it still accepts the caller."""
        self.check()
        self.callee_connection = connection

    # Once it has answered.

    async def take_use(self) -> None:
        """Take one use of a permit that allows a number of calls.

        It is durable before the address is sent: a crash loses it, and never gives it twice (I7).

        :raises PermissionDenied: the permit is gone
        :raises ServiceUnavailable: the store does not take it
        """
        self.use = await self.context.permits.take(self.callee, self.caller)
        self.durable_entry = self.use.entry

    def recheck(self) -> StillPermitted:
        """What was true before the callee was asked must be true as its address is sent (I1, I2).

        :raises PermissionDenied: the caller is not accepted now
        :raises ServiceUnavailable: another entry permits it than the one that is durable
        :raises TooManyRequests: it has got too many sessions while this one was decided
        :raises CalleeNotConnected: the callee is gone, or elsewhere
        :raises CalleeNotFound: its address has expired
        """
        context, entry = self.context, self.check()
        durable = self.durable_entry
        if durable is not None and durable != entry:
            if not context.permits.authorizes(self.callee, self.caller, durable):
                raise ServiceUnavailable
            entry = durable
        context.sessions.check_session_quota(self.caller, self.callee)
        connection = self.callee_connection
        if context.connections.usable(self.callee) is not connection:
            raise CalleeNotConnected
        if self.binding.until <= context.clock.seconds():
            raise CalleeNotFound
        # Its new address is not the one that was recorded.
        if connection.registration_number > self.located_at:
            raise CalleeNotConnected
        return StillPermitted(entry)

    async def commit(
        self, permitted: StillPermitted, disclosures: Iterable[Disclosure]
    ) -> StillPermitted:
        """Commit disclosures to the ledger before the addresses are sent (``--ledger first``).

        :return: that this is still permitted, found after the wait for the store
        :raises ServiceUnavailable: the store does not take them
        :raises Refused: as ``recheck``
        """
        await self.context.disclosures.commit(*disclosures)
        self.durable_entry = permitted
        return self.recheck()

    def tell(
        self, permitted: StillPermitted, to_caller: dict[str, str], to_callee: Message | None
    ) -> None:
        """Grant the session, and tell both sides, in the order of the figure.

        The callee has its credentials before the caller learns where to turn (A11).

        :param permitted: what ``recheck`` returned, in this turn
        :param to_caller: the fields of fig. 5d
        :param to_callee: fig. 5e; ``None`` where the callee was asked with its credentials
        """
        request = self.request
        self.context.sessions.granted(self.credentials.session, self.caller, self.callee, permitted)
        to_caller.update(canonical_identifier_field(self.caller_connection, request))
        if to_callee is None:
            request.reply(REQUEST_ACCEPTED, to_caller, code=200)
        else:
            request.reply(REQUEST_ACCEPTED, more=True)  # S1206, fig. 5b
            self.callee_connection.stream.send_early(to_callee)  # S1208, S2009
            request.reply("", to_caller, code=200)  # S1210, S2008
        if self.use is not None:
            self.use.spent()


async def locate(context: MediatorContext, identifier: str) -> Binding:
    """Where a terminal is: as the resolver knows (S1204); else where its connection comes from.

    :raises CalleeNotFound: neither is known
    :raises ServiceUnavailable: the resolver does not answer
    """
    try:
        return await context.resolver.lookup(identifier)
    except CalleeNotFound:
        return context.connections.source_of(identifier)
