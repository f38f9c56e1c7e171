"""What a mediator must do, written down a second time: small, slow, and after the documents.

It shares no code with the product. It is told what happens, and says what each connection reads.
Times are seconds; texts are as ``scene`` has them, with ``{session1}`` and the like for what is
drawn at random, the number being that of the call.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

ANSWER_SECONDS = 5.0
DIAL_SECONDS = 3.0
DIAL_PAUSE = 5.0
UNSPENT = 30.0
NEVER = float("inf")

DENIED, NOT_FOUND = "Permission Denied.", "Callee not Found."
NOT_CONNECTED, BUSY = "Callee not Connected.", "Callee is Busy."
CODES = {DENIED: 403, NOT_FOUND: 404, NOT_CONNECTED: 480, BUSY: 486}


@dataclass(eq=False)
class Connection:
    """One terminal's connection.

    :ivar port: that of the address it registered, if any; one port is registered once only
    :ivar since: the turn at which it became the active one
    :ivar bare: its requests without a transaction that have not been answered, oldest first
    :ivar questions: by transaction, the calls for which it was asked its status
    """

    name: str
    identifier: str
    transactions: bool = False
    alive: bool = True
    port: int | None = None
    expires: float = 3600
    since: int = 0
    serial: int = 0
    bare: list[Request] = field(default_factory=list)
    questions: dict[str, Request] = field(default_factory=dict)


@dataclass(eq=False)
class Request:
    """A request.

    :ivar ready: what can be sent once its turn has come
    :ivar waits: for its callee to register: while that is dialled (``dial``), or after (``woken``)
    :ivar decided: a call that only waits for its turn, and what refuses it, ``""`` for nothing
    """

    connection: Connection
    transaction: str | None
    callee: str = ""
    ready: str = ""
    done: bool = False
    deadline: float = NEVER
    begun: int = 0
    peer: Connection | None = None
    waits: str = ""
    decided: str | None = None


@dataclass(eq=False)
class Session:
    """A session, by the number of its call; until it has begun, it expires."""

    number: int
    caller: str
    callee: str
    until: float


class Change(NamedTuple):
    """A change, which waits until those of the same key before it are made.

    :ivar stored: it is committed first
    """

    key: str
    stored: bool
    make: Callable[[], None]
    fail: Callable[[], None]


def edited(names: list[str], edits: list[str]) -> list[str]:
    """A list after edits (fig. 3)."""
    for edit in edits:
        word, _, rest = edit.partition(" ")
        given = [name for name in rest.split(",") if name]
        if word == "Create":
            names = []
        if word == "Delete":
            names = [name for name in names if name not in given]
        else:
            names = list(dict.fromkeys(names + given))
    return names


def terminate(number: int, how: str = "") -> str:
    """A session is void."""
    end = f"End:{how}\n" if how else ""
    return f"NOTIFY\nSession:{{session{number}}}\n{end}Terminate.\n\n"


class Model:
    """A mediator with a resolver inside.

    :ivar reads: what each connection reads because of what happened last
    :ivar slow: commits wait until they are let through
    :ivar disclosed: each address that was sent: whose, to which terminal, port, number of the call
    """

    def __init__(self, *, status: bool) -> None:
        self.slow = False
        self.status = status
        self.now = 0.0
        self.reads: defaultdict[str, str] = defaultdict(str)
        self.connections: list[Connection] = []  # in the order in which they were bound
        self.permits: dict[str, list[str]] = {}
        self.groups: dict[str, list[str]] = {}
        self.active: dict[str, Connection] = {}
        self.places: dict[str, tuple[int, float]] = {}
        self.dials: dict[str, tuple[int, float]] = {}  # the port, and until when
        self.dialled: dict[str, float] = {}
        self.woken: dict[str, float] = {}
        self.calls: list[Request] = []  # undecided or waiting for their turn, oldest first
        self.sessions: list[Session] = []
        self.owed: dict[str, list[int]] = {}
        self.changing: defaultdict[str, list[Change]] = defaultdict(list)  # each first: being made
        self.committing: list[Change] = []
        self.disclosed: list[tuple[str, str, int, int]] = []
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
        request = self._received(connection, transaction)

        def make() -> None:
            if edits:
                before = self.permits.get(connection.identifier, [])
                self.permits[connection.identifier] = edited(before, edits)
                self._void_what_is_not_permitted()
            if port is not None:
                self._register(connection, port, expires)
            elif withdraws:
                self._withdraw(connection.identifier)
            epoch = "Epoch:epoch-1\n" if transaction is not None else ""
            self._reply(request, f"NOTIFY\nRegistration Completed.\n{epoch}\n", 200)

        why = "NOTIFY\nRegistration Failed.\nCause:why\n\n"
        fail = partial(self._reply, request, why, 400)
        self._change(Change(connection.identifier, bool(edits), make, fail))

    def regroups(self, name: str, members: list[str]) -> None:
        """The operator says who is in a group."""

        def make() -> None:
            self.groups[name] = list(dict.fromkeys(members))
            self._void_what_is_not_permitted()

        self._change(Change("groups", True, make, lambda: None))

    def refused(
        self, connection: Connection, transaction: str | None, answer: str, code: int
    ) -> None:
        """A request that is refused whatever the state; ``answer`` is bare."""
        self._reply(self._received(connection, transaction), answer, code)

    def queries(self, caller: Connection, transaction: str | None, callee: str) -> None:
        """A ``QUERY``."""
        call = self._received(caller, transaction)
        call.callee = callee
        if not self._is_permitted(call):
            self._refuse(call, DENIED)
            return
        call.begun = self.turn
        call.deadline = self.now + ANSWER_SECONDS
        self.calls.append(call)
        port = self._port(callee)
        if port is None:
            self._decide(call, NOT_FOUND)
        elif callee in self.active:
            self._ask(call, self.active[callee])
        else:
            self._dial(call, port)

    def answers(self, connection: Connection, key: str | None, status: str) -> None:
        """A ``NOTIFY`` that answers, or seems to answer, a question: the oldest without a key."""
        if key is None:
            key = next(iter(connection.questions), "")
        if key in connection.questions:
            refusal = {"STATUS Acceptable.": "", "STATUS Busy.": BUSY}.get(status, NOT_CONNECTED)
            self._decide(connection.questions[key], refusal)

    def leaves(self, connection: Connection) -> None:
        """A connection is cut."""
        connection.alive = False
        identifier = connection.identifier
        for call in [call for call in self.calls if call.connection is connection]:
            self._forget(call)
            call.decided = None
        for call in list(connection.questions.values()):
            self._decide(call, NOT_CONNECTED)
        self.connections.remove(connection)
        if connection.port is not None and self.active.get(identifier) is connection:
            del self.active[identifier]
            if identifier in self.places:
                self.places[identifier] = (connection.port, self.now + connection.expires)
            others = [other for other in self._of(identifier) if other.port is not None]
            if others:
                self._is_active(max(others, key=lambda other: other.since))

    def commit_ends(self, *, fails: bool) -> None:
        """The oldest commit is done, or has failed, because of ``why``."""
        change = self.committing.pop(0)
        if fails:
            self._next(change)
            change.fail()
        else:
            change.make()
            self._next(change)

    def dial_ends(self, identifier: str, *, succeeds: bool) -> None:
        """A dial has been answered, or not."""
        del self.dials[identifier]
        for call in self._waiting(identifier, "dial"):
            if succeeds:
                call.waits = "woken"
            else:
                self._decide(call, NOT_CONNECTED)
        if succeeds:
            self.woken[identifier] = self.now

    def begins(self, connection: Connection, number: int) -> None:
        """``Begin.``"""
        for session in self.sessions:
            if session.number == number and session.callee == connection.identifier:
                session.until = NEVER
                return
        self._send(connection, terminate(number))

    def ends(self, connection: Connection, number: int) -> None:
        """``End:``; the callee's counts, and is sent to a caller that still waits."""
        for session in list(self.sessions):
            if session.number == number and session.callee == connection.identifier:
                self.sessions.remove(session)
                if session.until < NEVER:
                    for peer in self._of(session.caller):
                        self._send(peer, terminate(number, "Completed"))

    def passes(self, seconds: float) -> None:
        """Time passes, so that this and that falls due."""
        end = self.now + seconds
        while True:
            dues = [(until, 0) for _, until in self.dials.values()]
            dues += [(call.deadline, 1) for call in self.calls]
            dues += [(session.until, 2) for session in self.sessions]
            due, kind = min(dues, default=(NEVER, 0))
            if due > end:
                break
            self.now = due
            if kind == 0:
                late = next(name for name, (_, until) in self.dials.items() if until == due)
                self.dial_ends(late, succeeds=False)
            elif kind == 1:
                call = next(call for call in self.calls if call.deadline == due)
                call.deadline = NEVER
                if call.decided is None:
                    self._decide(call, NOT_CONNECTED)
            else:
                self.sessions = [session for session in self.sessions if session.until > due]
        self.now = end

    # What is so.

    def accepts(self, callee: str, caller: str) -> bool:
        """Whether a caller is permitted now."""
        accepted = self.permits.get(callee, [])
        return caller in accepted or any(caller in self.groups.get(name, []) for name in accepted)

    def take(self) -> dict[str, str]:
        """What was read; then forget it."""
        reads = dict(self.reads)
        self.reads.clear()
        return reads

    def _is_permitted(self, call: Request) -> bool:
        return self.accepts(call.callee, call.connection.identifier)

    def _port(self, identifier: str) -> int | None:
        port, until = self.places.get(identifier, (0, 0.0))
        return port if until > self.now else None

    def _of(self, identifier: str) -> list[Connection]:
        return [one for one in self.connections if one.identifier == identifier]

    def _waiting(self, callee: str, *waits: str) -> list[Request]:
        return [call for call in self.calls if call.callee == callee and call.waits in waits]

    # What is sent.

    def _received(self, connection: Connection, transaction: str | None) -> Request:
        request = Request(connection, transaction)
        if transaction is None:
            connection.bare.append(request)
        else:
            connection.transactions = True
        return request

    def _send(self, connection: Connection, text: str) -> None:
        if connection.alive:
            self.reads[connection.name] += text

    def _refuse(self, request: Request, statement: str) -> None:
        self._reply(request, f"NOTIFY\n{statement}\n\n", CODES[statement])

    def _reply(self, request: Request, text: str, code: int) -> None:
        """The last reply; ``text`` is bare."""
        is_secret = request.callee and not self._is_permitted(request)
        assert not is_secret or text == f"NOTIFY\n{DENIED}\n\n", "a caller saw a difference (I6)"
        request.done = True
        if request.transaction is None:
            request.ready += text
            self._send_in_order(request.connection)
        else:
            end = f"Transaction:{request.transaction}\nCode:{code}\n\n"
            self._send(request.connection, text.removesuffix("\n") + end)

    def _send_in_order(self, connection: Connection) -> None:
        while connection.bare:
            first = connection.bare[0]
            self._send(connection, first.ready)
            first.ready = ""
            if not first.done:
                if first.decided is None:
                    return
                refusal, first.decided = first.decided, None
                self._finish(first, refusal)
                if not first.done:
                    return
            if first in connection.bare:
                connection.bare.remove(first)

    # A call.

    def _dial(self, call: Request, port: int) -> None:
        callee = call.callee
        if callee not in self.dials:
            if self.now - self.woken.get(callee, -DIAL_PAUSE) < DIAL_PAUSE:
                call.waits = "woken"
                return
            if self.now - self.dialled.get(callee, -DIAL_PAUSE) < DIAL_PAUSE:
                self._decide(call, NOT_CONNECTED)
                return
            self.dialled[callee] = self.now
            self.dials[callee] = (port, self.now + DIAL_SECONDS)
        call.waits = "dial"

    def _ask(self, call: Request, peer: Connection) -> None:
        call.waits = ""
        call.peer = peer
        if not self.status:
            self._decide(call, "")
        elif not self._is_permitted(call):
            self._decide(call, DENIED)
        elif not peer.alive:
            self._decide(call, NOT_CONNECTED)
        else:
            peer.serial += 1
            key = str(peer.serial)
            peer.questions[key] = call
            mark = f"Transaction:{key}\n" if peer.transactions else ""
            self._send(peer, f"QUERY\nSTATUS\n{mark}\n")

    def _decide(self, call: Request, refusal: str) -> None:
        self._wait_no_longer(call)
        if call.transaction is not None or call.connection.bare[0] is call:
            self._finish(call, refusal)
        else:
            call.decided = refusal

    def _wait_no_longer(self, call: Request) -> None:
        call.waits = ""
        call.deadline = NEVER
        for peer in self.connections:
            peer.questions = {key: one for key, one in peer.questions.items() if one is not call}

    def _forget(self, call: Request) -> None:
        self._wait_no_longer(call)
        if call in self.calls:
            self.calls.remove(call)

    def _finish(self, call: Request, refusal: str) -> None:
        self._forget(call)
        peer = call.peer
        if not self._is_permitted(call):
            self._refuse(call, DENIED)
        elif refusal:
            self._refuse(call, refusal)
        elif peer is not None and peer.since > call.begun and self._port(call.callee) is None:
            self._refuse(call, NOT_FOUND)
        elif peer is None or not peer.alive or self.active.get(call.callee) is not peer:
            self._refuse(call, NOT_CONNECTED)
        else:
            self._grant(call, peer)

    def _grant(self, call: Request, peer: Connection) -> None:
        n = self.number = self.number + 1
        pair = caller, callee = call.connection.identifier, call.callee
        assert self.accepts(callee, caller), "granted to a caller that is not accepted (I1)"
        assert peer.identifier == callee, "the address of another (I1, I12)"
        self.sessions = [
            one for one in self.sessions if one.until == NEVER or (one.caller, one.callee) != pair
        ]
        self.sessions.append(Session(n, caller, callee, self.now + UNSPENT))
        self.disclosed.append((callee, caller, peer.port or 0, n))
        mark = f"Transaction:{call.transaction}\nCode:100\n" if call.transaction else ""
        self._send(call.connection, f"NOTIFY\nRequest Accepted.\n{mark}\n")
        shared = f"Password:{{password{n}}}\nEncrypt Key:{{key{n}}}\n"
        session = f"Session:{{session{n}}}\nExpires:3600\nReply Password:{{reply{n}}}\n"
        self._send(peer, f"NOTIFY\nCaller ID:{caller}\n{shared}{session}\n")
        where = f"Callee Port:{peer.port}\nCallee:{callee}\n"
        self._reply(call, f"NOTIFY\nCallee Address:127.0.0.1\n{shared}{where}{session}\n", 200)

    # A change.

    def _change(self, change: Change) -> None:
        waiting = self.changing[change.key]
        waiting.append(change)
        if len(waiting) == 1:
            self._begin(change)

    def _begin(self, change: Change) -> None:
        if change.stored and self.slow:
            self.committing.append(change)
        else:
            change.make()
            self._next(change)

    def _next(self, change: Change) -> None:
        waiting = self.changing[change.key]
        waiting.pop(0)
        if waiting:
            self._begin(waiting[0])

    def _void_what_is_not_permitted(self) -> None:
        for session in list(self.sessions):
            if self.accepts(session.callee, session.caller):
                continue
            self.sessions.remove(session)
            for party in (session.callee, session.caller):
                peers = self._of(party)
                for peer in peers:
                    self._send(peer, terminate(session.number))
                if not peers and session.until == NEVER:
                    self.owed.setdefault(party, []).append(session.number)

    def _register(self, connection: Connection, port: int, expires: float) -> None:
        identifier = connection.identifier
        if not connection.alive:
            if identifier not in self.active:
                self.places[identifier] = (port, self.now + expires)
            return
        connection.port = port
        connection.expires = expires
        displaced = self.active.get(identifier)
        self._is_active(connection)
        if displaced is not None and displaced is not connection:
            self._send(displaced, "NOTIFY\nSuperseded.\n\n")
        for call in self._waiting(identifier, "dial", "woken"):
            self._ask(call, connection)
        for number in self.owed.pop(identifier, []):
            self._send(connection, terminate(number))

    def _withdraw(self, identifier: str) -> None:
        self.places.pop(identifier, None)
        self.active.pop(identifier, None)
        for connection in self._of(identifier):
            connection.port = None

    def _is_active(self, connection: Connection) -> None:
        self.turn += 1
        connection.since = self.turn
        self.active[connection.identifier] = connection
        self.places[connection.identifier] = (connection.port or 0, NEVER)
