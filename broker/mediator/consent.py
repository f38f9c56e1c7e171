"""Consent on demand: the callee says for each request whom it accepts (C3, C6).

It is reached, asked for its lists (S2002, S2003), and the caller looked for in them (S2004). It is
not told who asks. Whatever goes wrong, the caller learns one thing, at one time (S2010).
"""

from __future__ import annotations

from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectionLost
from twisted.logger import Logger

from broker.mediator.connections import locate
from broker.mediator.context import MediatorContext
from broker.messages.errors import PermissionDenied, Refused
from broker.messages.grammar import QUERY
from broker.messages.message import Message, printable
from broker.messages.statements import ACCEPT
from broker.net.timers import wait_until
from broker.tables.consent_lists import NoConsent, consents, lists_of
from broker.tables.rate_limits import CONSENT_PROMPTS, RateLimiter


class Consent:
    """Asks callees whom they accept.

    :ivar prompts: how often callees have been asked of late
    """

    log = Logger()

    def __init__(self, context: MediatorContext) -> None:
        self.prompts = RateLimiter(CONSENT_PROMPTS)
        self._clock = context.clock
        self._permits = context.permits
        self._resolver = context.resolver
        self._reach = context.connections
        self._counts = context.counts
        self._patience = context.settings.status_timeout

    async def ask(self, caller: str, callee: str) -> None:
        """Have a callee say whether it accepts a caller; that decides this one request.

        :raises PermissionDenied: it doesn't, or can't be asked, or not now, or says nothing that
            can be understood: whatever it was (C6, I6)
        """
        try:
            await self._ask(caller, callee)
        except (Refused, CancelledError, ConnectionLost, NoConsent) as error:
            why = "refused" if isinstance(error, PermissionDenied) else "not had"
            self._counts[f"consent {why}"] += 1
            raise PermissionDenied from None
        except Exception:
            self.log.failure(
                "{callee} could not be asked whom it accepts", callee=printable(callee)
            )
            raise PermissionDenied from None
        self._counts["consent given"] += 1

    async def _ask(self, caller: str, callee: str) -> None:
        self._check(caller, callee)
        if self.prompts.acquire(caller, callee, self._clock.seconds()) is None:  # I17
            self._counts["consent not asked for: too often"] += 1
            raise PermissionDenied
        place = await locate(self._resolver, self._reach, callee)
        peer = await self._reach.get(callee, place.contact)  # S2002
        self._check(caller, callee)
        _, answer = await self._reach.ask(
            callee,
            peer,
            place.contact,
            Message(QUERY, ACCEPT),
            lambda _: self._check(caller, callee),
        )
        if answer.statement:
            raise NoConsent("the answer is another's")
        lists = lists_of(answer.edits("Accept"), answer.edits("Reject"))  # S2003
        if not consents(lists, self._permits.called(caller)):  # S2004, S2005
            raise PermissionDenied

    def _check(self, caller: str, callee: str) -> None:
        """Whom the callee has refused once and for all it is not asked about (I5)."""
        if not self._permits.requires_consent(callee) or self._permits.rejects(callee, caller):
            raise PermissionDenied

    async def wait_out(self, begun: float) -> None:
        """Wait until a refused call has taken as long as a callee may take to say no.

        As long as nobody is asked for consent there is nothing to hide. Else every refusal waits,
        be its callee one who is asked, one whose list refused, or nobody at all (I6).

        :param begun: when the call began
        """
        if self._permits.asking:
            await wait_until(self._clock, begun + self._patience)
