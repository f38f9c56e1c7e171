"""What a mediator must do, written down a second time: small, slow, and after the documents.

It shares no code with the product. It is told what happens, and says what each connection reads.
Times are seconds; texts are as ``scene`` has them, with ``{session1}`` and the like for what is
drawn at random, the number being that of the call.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

ANSWER_SECONDS = 5.0
DIAL_SECONDS = 3.0
DIAL_PAUSE = 5.0
UNSPENT = 30.0


@dataclass(eq=False)
class Connection:
    """One terminal's connection.

    :ivar port: that of the address it registered, if any; one port is registered once only
    :ivar since: the turn at which it came to be the one reached
    :ivar bare: its requests without a transaction that have not been answered, oldest first
    """

    name: str
    identifier: str
    transactions: bool = False
    alive: bool = True
    port: int | None = None
    expires: float = 3600
    since: int = 0
    serial: int = 0
    bare: list[Asked] = field(default_factory=list)
    marked: list[Asked] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)


@dataclass(eq=False)
class Asked:
    """A request.

    :ivar held: what is ready to be told, once its turn has come
    :ivar decided: a call that only waits for its turn, and what refuses it, ``""`` for nothing
    """

    connection: Connection
    transaction: str | None
    callee: str = ""
    held: str = ""
    done: bool = False
    deadline: float = float("inf")
    begun: int = 0
    peer: Connection | None = None
    waits_for: str = ""
    dial: Dial | None = None
    decided: str | None = None


@dataclass(eq=False)
class Question:
    """``QUERY STATUS``, not answered yet."""

    key: str
    call: Asked


@dataclass(eq=False)
class Dial:
    """A dial under way."""

    port: int
    until: float
    calls: list[Asked] = field(default_factory=list)


@dataclass(eq=False)
class Session:
    """A session, by the number of its call."""

    number: int
    caller: str
    callee: str
    until: float
    begun: bool = False


@dataclass(eq=False)
class Change:
    """A registration."""

    request: Asked
    edits: list[str]
    port: int | None = None
    expires: float = 3600
    withdraws: bool = False


@dataclass(eq=False)
class Regroup:
    """The operator changes a group."""

    name: str
    members: list[str]


CODES = {
    "Permission Denied.": 403,
    "Callee not Found.": 404,
    "Callee not Connected.": 480,
    "Callee is Busy.": 486,
}
DENIED, NOT_FOUND = "Permission Denied.", "Callee not Found."
NOT_CONNECTED, BUSY = "Callee not Connected.", "Callee is Busy."


def edited(names: list[str], edits: list[str]) -> list[str]:
    """A list after edits (fig. 3)."""
    for edit in edits:
        word, _, rest = edit.partition(" ")
        said = [name for name in rest.split(",") if name]
        if word == "Create":
            names = []
        if word == "Delete":
            names = [name for name in names if name not in said]
        else:
            names = names + [name for n, name in enumerate(said) if name not in names + said[:n]]
    return names


class Model:
    """A mediator with a resolver inside.

    :ivar reads: what each connection reads because of what happened last
    :ivar slow: commits wait until they are let through
    """

    def __init__(self, *, slow: bool, status: bool) -> None:
        self.slow = slow
        self.status = status
        self.now = 0.0
        self.reads: defaultdict[str, str] = defaultdict(str)
        self.connections: list[Connection] = []  # in the order in which they were bound
        self.permits: dict[str, list[str]] = {}
        self.groups: dict[str, list[str]] = {}
        self.reached: dict[str, Connection] = {}
        self.places: dict[str, tuple[int, float]] = {}
        self.dials: dict[str, Dial] = {}
        self.dialled: dict[str, float] = {}
        self.told: dict[str, float] = {}
        self.calls: list[Asked] = []  # undecided or waiting for their turn, oldest first
        self.sessions: list[Session] = []
        self.owed: dict[str, list[int]] = {}
        self.changing: dict[str, list[Change]] = {}  # the first of each is being made
        self.committing: list[Change | Regroup] = []
        self.regrouping: list[Regroup] = []  # the first is being made
        self.turn = 0
        self.number = 0

    # What happens.

    def connected(self, name: str, identifier: str) -> Connection:
        """A terminal connects; its first message follows."""
        connection = Connection(name, identifier)
        self.connections.append(connection)
        return connection

    def registers(
        self,
        connection: Connection,
        transaction: str | None,
        edits: list[str],
        port: int | None = None,
        expires: float = 3600,
        *,
        withdraws: bool = False,
    ) -> None:
        """A ``REGISTER`` that nothing is wrong with."""
        request = self._asked(connection, transaction)
        change = Change(request, edits, port, expires, withdraws)
        waiting = self.changing.get(connection.identifier)
        if waiting is not None:
            waiting.append(change)
        elif edits:
            self.changing[connection.identifier] = [change]
            self._begin(change)
        else:
            self._change(change)

    def regroups(self, name: str, members: list[str]) -> None:
        """The operator says who is in a group."""
        self.regrouping.append(Regroup(name, members))
        if len(self.regrouping) == 1:
            self._begin_regroup()

    def refused(
        self, connection: Connection, transaction: str | None, answer: str, code: int
    ) -> None:
        """A request that is refused whatever the state; ``answer`` is bare."""
        self._reply(self._asked(connection, transaction), answer, code)

    def queries(self, caller: Connection, transaction: str | None, callee: str) -> None:
        """A ``QUERY``."""
        call = self._asked(caller, transaction)
        call.callee = callee
        if not self.accepts(callee, caller.identifier):
            self._answer(call, DENIED)
            return
        call.begun = self.turn
        call.deadline = self.now + ANSWER_SECONDS
        self.calls.append(call)
        place = self._place(callee)
        if place is None:
            self._decide(call, NOT_FOUND)
        elif callee in self.reached:
            self._ask(call, self.reached[callee])
        else:
            self._dial(call, place)

    def answers(self, connection: Connection, key: str | None, status: str) -> None:
        """A ``NOTIFY`` that answers, or seems to answer, a question."""
        for question in connection.questions:
            if key is None or question.key == key:
                connection.questions.remove(question)
                refusal = {"STATUS Acceptable.": "", "STATUS Busy.": BUSY}
                self._decide(question.call, refusal.get(status, NOT_CONNECTED))
                return

    def leaves(self, connection: Connection) -> None:
        """A connection is cut."""
        connection.alive = False
        identifier = connection.identifier
        for call in [call for call in self.calls if call.connection is connection]:
            self._forget(call)
            call.decided = None
        for question in list(connection.questions):
            self._decide(question.call, NOT_CONNECTED)
        self.connections.remove(connection)
        if connection.port is not None and self.reached.get(identifier) is connection:
            del self.reached[identifier]
            if identifier in self.places:
                self.places[identifier] = (connection.port, self.now + connection.expires)
            others = [other for other in self._of(identifier) if other.port is not None]
            if others:
                newest = max(others, key=lambda other: other.since)
                self._is_reached(newest)

    def commits(self) -> None:
        """The oldest commit is done."""
        change = self.committing.pop(0)
        if isinstance(change, Regroup):
            self._regroup(change)
            return
        self._change(change)
        self._next(change)

    def commit_fails(self) -> None:
        """The oldest commit has failed, because of ``why``."""
        change = self.committing.pop(0)
        if isinstance(change, Regroup):
            self._next_regroup()
            return
        self._next(change)
        self._reply(change.request, "NOTIFY\nRegistration Failed.\nCause:why\n\n", 400)

    def dial_ends(self, identifier: str, *, told: bool) -> None:
        """A dial has been answered, or not."""
        dial = self.dials.pop(identifier)
        for call in dial.calls:
            call.dial = None
            if call not in self.calls or call.decided is not None:
                continue
            if not told:
                call.waits_for = ""
                self._decide(call, NOT_CONNECTED)
        if told:
            self.told[identifier] = self.now

    def begins(self, connection: Connection, number: int) -> None:
        """``Begin.``"""
        for session in self.sessions:
            if session.number == number and session.callee == connection.identifier:
                session.begun = True
                session.until = float("inf")
                return
        self._tell(connection, self._terminate(number))

    def ends(self, connection: Connection, number: int) -> None:
        """``End:``; the callee's counts, and is told to a caller that still waits."""
        for session in list(self.sessions):
            if session.number == number and session.callee == connection.identifier:
                self.sessions.remove(session)
                if not session.begun:
                    for peer in self._of(session.caller):
                        self._tell(peer, self._terminate(number, "Completed"))

    def passes(self, seconds: float) -> None:
        """Time passes, so that this and that falls due."""
        end = self.now + seconds
        while True:
            dues = [(dial.until, 0) for dial in self.dials.values()]
            dues += [(call.deadline, 1) for call in self.calls]
            dues += [(session.until, 2) for session in self.sessions]
            due, kind = min(dues, default=(end + 1, 0))
            if due > end:
                break
            self.now = due
            if kind == 0:
                oldest = next(name for name, dial in self.dials.items() if dial.until == due)
                self.dial_ends(oldest, told=False)
            elif kind == 1:
                late = next(call for call in self.calls if call.deadline == due)
                late.deadline = float("inf")
                if late.decided is None:
                    self._decide(late, NOT_CONNECTED)
            else:
                self.sessions = [one for one in self.sessions if one.until > due]
        self.now = end

    # What is so.

    def accepts(self, callee: str, caller: str) -> bool:
        """Whether a caller is permitted now."""
        accepted = self.permits.get(callee, [])
        groups = [name for name in accepted if caller in self.groups.get(name, [])]
        return caller in accepted or bool(groups)

    def take(self) -> dict[str, str]:
        """What was read; then forget it."""
        reads = {name: text for name, text in self.reads.items() if text}
        self.reads.clear()
        return reads

    # How it comes to be so.

    def _asked(self, connection: Connection, transaction: str | None) -> Asked:
        request = Asked(connection, transaction)
        if transaction is None:
            connection.bare.append(request)
        else:
            connection.transactions = True
            connection.marked.append(request)
        return request

    def _tell(self, connection: Connection, text: str) -> None:
        if connection.alive:
            self.reads[connection.name] += text

    def _answer(self, request: Asked, statement: str) -> None:
        self._reply(request, f"NOTIFY\n{statement}\n\n", CODES[statement])

    def _reply(self, request: Asked, text: str, code: int = 400) -> None:
        """The last reply; ``text`` is bare."""
        request.done = True
        if request.transaction is not None:
            end = f"Transaction:{request.transaction}\nCode:{code}\n\n"
            self._tell(request.connection, text.removesuffix("\n") + end)
            if request in request.connection.marked:
                request.connection.marked.remove(request)
        else:
            request.held += text
            self._leave_in_order(request.connection)

    def _leave_in_order(self, connection: Connection) -> None:
        while connection.bare:
            first = connection.bare[0]
            self._tell(connection, first.held)
            first.held = ""
            if not first.done:
                if first.decided is None:
                    return
                refusal, first.decided = first.decided, None
                self._finish(first, refusal)
                if not first.done:
                    return
            if first in connection.bare:
                connection.bare.remove(first)

    def _decide(self, call: Asked, refusal: str) -> None:
        self._wait_no_more(call)
        is_first = call.transaction is not None or call.connection.bare[0] is call
        if is_first:
            self._finish(call, refusal)
        else:
            call.decided = refusal

    def _finish(self, call: Asked, refusal: str) -> None:
        self._forget(call)
        caller = call.connection.identifier
        peer = call.peer
        if not self.accepts(call.callee, caller):
            self._answer(call, DENIED)
        elif refusal:
            self._answer(call, refusal)
        elif peer is not None and peer.since > call.begun and self._place(call.callee) is None:
            self._answer(call, NOT_FOUND)
        elif peer is None or not peer.alive or self.reached.get(call.callee) is not peer:
            self._answer(call, NOT_CONNECTED)
        else:
            self._grant(call, peer)

    def _grant(self, call: Asked, peer: Connection) -> None:
        n = self.number = self.number + 1
        caller = call.connection.identifier
        self.sessions = [
            one
            for one in self.sessions
            if one.begun or (one.caller, one.callee) != (caller, call.callee)
        ]
        self.sessions.append(Session(n, caller, call.callee, self.now + UNSPENT))
        mark = call.transaction and f"Transaction:{call.transaction}\nCode:"
        first = "NOTIFY\nRequest Accepted.\n" + (f"{mark}100\n" if mark else "")
        self._tell(call.connection, first + "\n")
        shared = f"Password:{{password{n}}}\nEncrypt Key:{{key{n}}}\n"
        session = f"Session:{{session{n}}}\nExpires:3600\nReply Password:{{reply{n}}}\n"
        self._tell(peer, f"NOTIFY\nCaller ID:{caller}\n{shared}{session}\n")
        where = f"Callee Port:{peer.port}\nCallee:{call.callee}\n"
        text = f"NOTIFY\nCallee Address:127.0.0.1\n{shared}{where}{session}\n"
        self._reply(call, text, 200)

    def _ask(self, call: Asked, peer: Connection) -> None:
        call.waits_for = ""
        call.peer = peer
        if not self.status:
            self._decide(call, "")
            return
        if not self.accepts(call.callee, call.connection.identifier):
            self._decide(call, DENIED)
            return
        if not peer.alive:
            self._decide(call, NOT_CONNECTED)
            return
        peer.serial += 1
        key = str(peer.serial)
        peer.questions.append(Question(key, call))
        mark = f"Transaction:{key}\n" if peer.transactions else ""
        self._tell(peer, f"QUERY\nSTATUS\n{mark}\n")

    def _dial(self, call: Asked, port: int) -> None:
        callee = call.callee
        dial = self.dials.get(callee)
        if dial is None:
            if self.now - self.told.get(callee, -DIAL_PAUSE) < DIAL_PAUSE:
                call.waits_for = callee
                return
            if self.now - self.dialled.get(callee, -DIAL_PAUSE) < DIAL_PAUSE:
                self._decide(call, NOT_CONNECTED)
                return
            self.dialled[callee] = self.now
            dial = self.dials[callee] = Dial(port, self.now + DIAL_SECONDS)
        call.waits_for = callee
        call.dial = dial
        dial.calls.append(call)

    def _wait_no_more(self, call: Asked) -> None:
        call.waits_for = ""
        call.deadline = float("inf")
        for connection in self.connections:
            connection.questions = [one for one in connection.questions if one.call is not call]

    def _forget(self, call: Asked) -> None:
        self._wait_no_more(call)
        if call in self.calls:
            self.calls.remove(call)

    def _begin(self, change: Change) -> None:
        if change.edits and self.slow:
            self.committing.append(change)
        else:
            self._change(change)
            self._next(change)

    def _next(self, change: Change) -> None:
        """A registration of an identifier is over: the turn of the next."""
        identifier = change.request.connection.identifier
        waiting = self.changing[identifier]
        waiting.remove(change)
        if waiting:
            self._begin(waiting[0])
        else:
            del self.changing[identifier]

    def _change(self, change: Change) -> None:
        connection = change.request.connection
        identifier = connection.identifier
        if change.edits:
            self._edit(identifier, change.edits)
        if change.port is not None:
            self._register(connection, change)
        elif change.withdraws:
            self.places.pop(identifier, None)
            self.reached.pop(identifier, None)
            for one in self._of(identifier):
                one.port = None
        epoch = "Epoch:epoch-1\n" if change.request.transaction is not None else ""
        self._reply(change.request, f"NOTIFY\nRegistration Completed.\n{epoch}\n", 200)

    def _edit(self, identifier: str, edits: list[str]) -> None:
        self.permits[identifier] = edited(self.permits.get(identifier, []), edits)
        self._void_what_falls()

    def _begin_regroup(self) -> None:
        if self.slow:
            self.committing.append(self.regrouping[0])
        else:
            self._regroup(self.regrouping[0])

    def _regroup(self, change: Regroup) -> None:
        self.groups[change.name] = list(dict.fromkeys(change.members))
        self._void_what_falls()
        self._next_regroup()

    def _next_regroup(self) -> None:
        self.regrouping.pop(0)
        if self.regrouping:
            self._begin_regroup()

    def _void_what_falls(self) -> None:
        """No session goes on that is not permitted now."""
        for session in list(self.sessions):
            if self.accepts(session.callee, session.caller):
                continue
            self.sessions.remove(session)
            for party in (session.callee, session.caller):
                peers = self._of(party)
                for peer in peers:
                    self._tell(peer, self._terminate(session.number))
                if not peers and session.begun:
                    self.owed.setdefault(party, []).append(session.number)

    def _register(self, connection: Connection, change: Change) -> None:
        identifier = connection.identifier
        port = change.port or 0
        if not connection.alive:
            if identifier not in self.reached:
                self.places[identifier] = (port, self.now + change.expires)
            return
        connection.port = port
        connection.expires = change.expires
        displaced = self.reached.get(identifier)
        self._is_reached(connection)
        if displaced is not None and displaced is not connection:
            self._tell(displaced, "NOTIFY\nSuperseded.\n\n")
        for call in [call for call in self.calls if call.waits_for == identifier]:
            call.waits_for = ""
            if call.dial is not None:
                call.dial.calls.remove(call)
                call.dial = None
            self._ask(call, connection)
        for number in self.owed.pop(identifier, []):
            self._tell(connection, self._terminate(number))

    def _is_reached(self, connection: Connection) -> None:
        self.turn += 1
        connection.since = self.turn
        self.reached[connection.identifier] = connection
        self.places[connection.identifier] = (connection.port or 0, float("inf"))

    def _place(self, identifier: str) -> int | None:
        port, until = self.places.get(identifier, (0, 0.0))
        return port if until > self.now else None

    def _of(self, identifier: str) -> list[Connection]:
        return [one for one in self.connections if one.identifier == identifier]

    def _terminate(self, number: int, how: str = "") -> str:
        end = f"End:{how}\n" if how else ""
        return f"NOTIFY\nSession:{{session{number}}}\n{end}Terminate.\n\n"
