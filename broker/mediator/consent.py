"""Consent on demand: for each call, the callee says which callers it accepts (C3, C6).

The callee is reached and asked for its lists (S2002, S2003); the caller is looked up in them
(S2004). The callee does not learn who asks. Whatever goes wrong, the caller learns the same thing,
at the same time (S2010).
"""

from __future__ import annotations

from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectionLost
from twisted.logger import Logger

from broker.mediator.attempt import CallAttempt, locate
from broker.mediator.connection import TerminalConnection
from broker.mediator.context import MediatorContext
from broker.messages.errors import CalleeNotFound, PermissionDenied, Refused
from broker.messages.grammar import QUERY
from broker.messages.message import Message, printable
from broker.messages.statements import ACCEPT
from broker.net.dialogue import Request
from broker.net.timers import wait_until
from broker.tables.consent_lists import NoConsent, consents, lists_of
from broker.tables.locations import Binding
from broker.tables.rate_limits import CONSENT_PROMPTS, RateLimiter
from broker.tables.sessions import BY_CONSENT


class ConsentedCall(CallAttempt):
    """A call that the callee is asked to consent to, and that then tells both their addresses.

    :ivar caller_binding: where the caller is (``locate_caller``)
    """

    __slots__ = ("_caller_active", "_caller_turn", "_is_caller_located", "caller_binding")

    caller_binding: Binding

    def __init__(
        self, context: MediatorContext, caller: TerminalConnection, callee: str, request: Request
    ) -> None:
        super().__init__(context, caller, callee, request)
        self._is_caller_located = False
        self._caller_active: TerminalConnection | None = None
        self._caller_turn = 0

    def check(self) -> str:
        """The callee must want to be asked, and must not reject this caller (I5).

        Callers that it rejects cause no question. After the question, this sees that the callee
        has not changed its mind.
        """
        permits = self.context.permits
        if not permits.requires_consent(self.callee) or permits.rejects(self.callee, self.caller):
            raise PermissionDenied
        return BY_CONSENT

    async def locate_caller(self) -> None:
        """Look up where the caller is, which its callee will be told (C7).

        Nothing where that is not known: the call does not depend on it.
        """
        active = self.context.connections.active(self.caller)
        self._caller_active = active
        self._caller_turn = 0 if active is None else active.registration_number
        try:
            self.caller_binding = await locate(self.context, self.caller)
        except CalleeNotFound:
            return
        self._is_caller_located = True

    @property
    def caller_is_there(self) -> bool:
        """Whether the caller was located, and is still there (I10)."""
        if not self._is_caller_located:
            return False
        active = self.context.connections.active(self.caller)
        if active is not self._caller_active:
            return False
        if active is not None and active.registration_number != self._caller_turn:
            return False
        return self.caller_binding.until > self.context.clock.seconds()


class ConsentQuestions:
    """Asks callees which callers they accept.

    :ivar prompts: how often callees were asked in the last minute
    """

    log = Logger()

    def __init__(self, context: MediatorContext) -> None:
        self.prompts = RateLimiter(CONSENT_PROMPTS)
        self._clock = context.clock
        self._permits = context.permits
        self._counts = context.counts
        self._timeout = context.settings.status_timeout

    async def ask(self, attempt: ConsentedCall) -> None:
        """Ask the callee whether it accepts the caller; its answer decides this one request.

        :raises PermissionDenied: it does not, or can't be asked, or not now, or its answer can't be
            understood: all of these look the same (C6, I6)
        """
        try:
            await self._ask(attempt)
        except (Refused, CancelledError, ConnectionLost, NoConsent) as error:
            outcome = "refused" if isinstance(error, PermissionDenied) else "failed"
            self._counts[f"consent {outcome}"] += 1
            raise PermissionDenied from None
        except Exception:
            self.log.failure(
                "{callee} could not be asked for its consent", callee=printable(attempt.callee)
            )
            raise PermissionDenied from None
        self._counts["consent given"] += 1

    async def _ask(self, attempt: ConsentedCall) -> None:
        """Fig. 20, S2002 to S2005."""
        attempt.check()  # I5
        self._check_rate(attempt)  # I17
        await attempt.locate()
        await attempt.reach()  # S2002
        attempt.check()  # I5
        answer = await attempt.ask(Message(QUERY, ACCEPT))
        if answer.statement:
            raise NoConsent("the answer is to another question")
        lists = lists_of(answer.edits("Accept"), answer.edits("Reject"))  # S2003
        if not consents(lists, self._permits.names_of(attempt.caller)):  # S2004, S2005
            raise PermissionDenied

    def _check_rate(self, attempt: ConsentedCall) -> None:
        """A callee is asked only so often; above that the caller can't tell this from a refusal."""
        if self.prompts.acquire(attempt.caller, attempt.callee, self._clock.seconds()) is None:
            self._counts["consent rate-limited"] += 1
            raise PermissionDenied

    async def wait_out(self, began: float) -> None:
        """Wait until a refused call has taken as long as a callee may take to refuse.

        As long as no identifier requires consent, there is nothing to hide. Otherwise every
        refusal waits, whether its callee was asked, or has a list that refused, or does not exist
        (I6).

        :param began: when the call began
        """
        if self._permits.has_consent_policies:
            await wait_until(self._clock, began + self._timeout)
