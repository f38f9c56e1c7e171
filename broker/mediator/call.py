"""The call: fig. 12, with fig. 16 (status) and 19 (wake-up) in it, one step a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectionLost

from broker.mediator.attempt import CallAttempt, StillPermitted
from broker.mediator.candidates import OfferedCandidate, between, waits_at
from broker.mediator.connection import TerminalConnection
from broker.mediator.consent import ConsentedCall, ConsentQuestions
from broker.mediator.context import MediatorContext
from broker.mediator.sessions import LIFETIME
from broker.messages.errors import (
    BadRequest,
    CalleeBusy,
    CalleeNotConnected,
    PermissionDenied,
    Refused,
)
from broker.messages.grammar import NOTIFY, QUERY
from broker.messages.message import Message
from broker.messages.statements import STATUS, STATUS_ACCEPTABLE, STATUS_BUSY
from broker.net.dialogue import Request
from broker.tables.disclosures import CALLING, CONSENT, Disclosure
from broker.tables.grants import draw_credentials
from broker.tables.locations import Contact
from broker.tables.sessions import BY_CONSENT


class PermittedCall(CallAttempt):
    """A call that an entry of the callee's list permits, or none."""

    __slots__ = ()

    def check(self) -> str:
        """The entry of the callee's list that permits this caller (S1203)."""
        entry = self.context.permits.permit_entry(self.callee, self.caller)
        if entry is None:
            raise PermissionDenied
        return entry


class CallHandler:
    """Mediates calls: decides, and tells both sides."""

    def __init__(self, context: MediatorContext) -> None:
        self._context = context
        self._ask_status = context.settings.ask_status
        self._consent = ConsentQuestions(context)

    async def call(self, caller: TerminalConnection, request: Request) -> None:
        """Mediate one call. Each refusal is raised; nothing of the callee is disclosed then."""
        context = self._context
        began = context.clock.seconds()
        fields = request.message.fields
        if "Callee" not in fields:
            raise BadRequest("a QUERY names a Callee")
        callee = context.permits.canonical(fields["Callee"])
        back = None
        if "Back" in fields:
            back = waits_at(caller, int(fields["Back"]), began, context.settings.own_ports)
        try:
            if context.permits.requires_consent(callee):
                consented = ConsentedCall(context, caller, callee, request)
                await self._consent.ask(consented)  # S2002–S2005
                await self._mediate(consented, back, consented)
            else:
                await self._mediate(PermittedCall(context, caller, callee, request), back)
            context.counts["calls granted"] += 1
        except PermissionDenied:
            if not request.done:  # it is, where the caller has gone
                await self._consent.wait_out(began)
            raise

    async def _mediate(
        self, attempt: CallAttempt, back: Contact | None, consented: ConsentedCall | None = None
    ) -> None:
        """Fig. 12.

        :param back: where the caller waits for the callee, if it does
        :param consented: the same attempt, where the callee has just accepted this very request
        """
        context, request = self._context, attempt.request
        permits, ledger = context.permits, context.disclosures
        attempt.check()  # S1203
        try:
            attempt.check_quota()
            await attempt.locate()  # S1204, S1205
            await attempt.reach()  # S1901, S1902
            if self._ask_status:
                await _ask_status(attempt)  # S1606–S1608
            if request.queued is not None:
                await request.until_next()  # decide when the reply can leave, and not before
            if permits.is_counted(attempt.callee, attempt.caller):
                await attempt.take_use()  # I7
            if consented is not None:
                await consented.locate_caller()  # S2006: both addresses
            while attempt.callee_connection.registration_number > attempt.located_at:
                await attempt.locate()  # it came, or registered again, since it was located
            candidates = self._candidates(attempt, back)
            ledger.check_room(1 + (consented is not None) + len(candidates))
            permitted = attempt.recheck()  # I1, I2
            records = _records(attempt, permitted, candidates, consented)
            if ledger.first:
                permitted = await attempt.commit(permitted, records.values())
            else:
                ledger.note(*records.values())
            if consented is not None and not consented.caller_is_there:
                records.pop("Caller", None)
            attempt.tell(permitted, _to_caller(attempt, records), _to_callee(attempt, records))
        except (Refused, CancelledError):
            if request.queued is not None and not request.done:
                await request.until_next()
            # Why a call fails is only for callers that the callee accepts.
            attempt.check()
            raise
        finally:
            if attempt.use is not None:
                attempt.use.give_back()  # nothing where it was spent

    def _candidates(self, attempt: CallAttempt, back: Contact | None) -> Sequence[OfferedCandidate]:
        """How else the two may reach each other: what each of them has offered."""
        callee = attempt.callee_connection
        if callee.offer is None and back is None:
            return ()
        fields, now = attempt.request.message.fields, self._context.clock.seconds()
        return between(attempt.caller_connection, callee, fields, back, now)


async def _ask_status(attempt: CallAttempt) -> None:
    """Ask the callee whether it can take a call (fig. 16)."""
    attempt.check()  # no question is caused by a caller that is refused by now (I5)
    try:
        answer = await attempt.ask(Message(QUERY, STATUS))
    except (ConnectionLost, CancelledError):
        raise CalleeNotConnected from None
    if answer.statement == STATUS_BUSY:
        raise CalleeBusy
    if answer.statement != STATUS_ACCEPTABLE:
        raise CalleeNotConnected  # an answer that says neither counts as no answer


def _records(
    attempt: CallAttempt,
    permitted: StillPermitted,
    candidates: Sequence[OfferedCandidate],
    consented: ConsentedCall | None,
) -> dict[str, Disclosure]:
    """Draw the credentials, and make a record of each address that is sent to the other side.

    :return: the records, by the fields that carry them
    """
    context = attempt.context
    attempt.credentials = draw_credentials(context.randomness)
    record, session = context.disclosures.record, attempt.credentials.session
    caller, callee = attempt.caller, attempt.callee
    why = CONSENT if permitted == BY_CONSENT else permitted
    records = {"Callee": record(callee, caller, attempt.binding.contact, session, why, LIFETIME)}
    if consented is not None and consented.caller_is_there:
        contact = consented.caller_binding.contact
        records["Caller"] = record(caller, callee, contact, session, CALLING, LIFETIME)
    for field, callees, contact in candidates:
        whose, other, reason = (callee, caller, why) if callees else (caller, callee, CALLING)
        records[field] = record(whose, other, contact, session, reason, LIFETIME)
    return records


def _to_callee(attempt: CallAttempt, records: Mapping[str, Disclosure]) -> Message:
    """Fig. 5e; of where the caller is, what the ledger has recorded, and nothing else."""
    credentials = attempt.credentials
    fields: dict[str, str] = {}
    if len(records) > 1:
        caller = records.get("Caller")
        if caller is not None:
            fields |= {"Caller Address": caller.host, "Caller Port": str(caller.port)}
        fields |= _candidate_fields(records, "Caller ")
    return Message.of(
        NOTIFY,
        {
            "Caller ID": attempt.caller,
            "Password": credentials.password,
            "Encrypt Key": credentials.key,
            **fields,
            "Session": credentials.session,
            "Expires": str(LIFETIME),
            "Reply Password": credentials.reply_password,
        },
    )


def _to_caller(attempt: CallAttempt, records: Mapping[str, Disclosure]) -> dict[str, str]:
    """Fig. 5d; of where the callee is, what the ledger has recorded, and nothing else."""
    credentials, callee = attempt.credentials, records["Callee"]
    fields = {
        "Callee Address": callee.host,
        "Password": credentials.password,
        "Encrypt Key": credentials.key,
        "Callee Port": str(callee.port),
        "Callee": callee.owner,
        "Session": callee.session,
        "Expires": str(callee.expires),
        "Reply Password": credentials.reply_password,
    }
    if len(records) > 1:
        fields |= _candidate_fields(records, "Callee ")
    return fields


def _candidate_fields(records: Mapping[str, Disclosure], whose: str) -> dict[str, str]:
    """The candidates of one side, for the other side."""
    return {
        field: f"{disclosure.host} {disclosure.port}"
        for field, disclosure in records.items()
        if field.startswith(whose)
    }
