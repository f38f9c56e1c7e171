"""Consent on demand: the callee says for each request whom it accepts (C3, C6).

It is reached, asked for its lists (S2002, S2003), and the caller looked for in them (S2004). It is
not told who asks. Whatever goes wrong, the caller learns one thing, at one time (S2010).
"""

from __future__ import annotations

from collections import Counter

from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from broker.interfaces import IResolver
from broker.mediator.connections import ConnectionRegistry, locate
from broker.mediator.permits import Permits
from broker.messages.errors import PermissionDenied, Refused
from broker.messages.grammar import QUERY
from broker.messages.message import Message, printable
from broker.messages.statements import ACCEPT
from broker.net.timers import wait_until
from broker.tables.consent_lists import NoConsent, consents, lists_of
from broker.tables.prompts import PromptTable


class Consent:
    """Asks callees whom they accept.

    :ivar prompts: how often callees have been asked of late
    """

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        permits: Permits,
        resolver: IResolver,
        reach: ConnectionRegistry,
        counts: Counter[str],
        *,
        patience: float,
    ) -> None:
        """
        :param counts: how often each outcome was had, for the operator
        :param patience: seconds in which a call is decided, and after which it is refused
        """
        self.prompts = PromptTable()
        self._clock = clock
        self._permits = permits
        self._resolver = resolver
        self._reach = reach
        self._counts = counts
        self._patience = patience

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
        if not self.prompts.take(caller, callee, self._clock.seconds()):  # I17
            self._counts["consent not asked for: too often"] += 1
            raise PermissionDenied
        place = await locate(self._resolver, self._reach, callee)
        peer = await self._reach.get(callee, place.address)  # S2002
        self._check(caller, callee)
        _, answer = await self._reach.ask(
            callee,
            peer,
            place.address,
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
