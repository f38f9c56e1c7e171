"""Everything at once, in any order: the mediator against a small model of it, step by step.

After every step each connection has read exactly what the model says, and, whatever the model
says, what is looked at in ``Ledger`` holds (I1, I2, I5, I6, I11).
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.internet.defer import Deferred

from broker.interfaces import StoreFailed
from broker.messages.message import Message
from tests.mediator.model import Connection, Model
from tests.mediator.scene import Scene, SlowStore, query, register
from tests.support.clock import settle
from tests.support.reactor import Dial
from tests.support.transport import parse_all

#: The number of sequences, always the same ones; with MACHINE_EXAMPLES set, that many new ones.
EXAMPLES = 80
MACHINE_EXAMPLES = int(os.environ.get("MACHINE_EXAMPLES", EXAMPLES))

NAMES = ("Ia", "Ib", "Ic")
#: Who may be asked for: one of them never registers.
CALLEES = (*NAMES, "Id")
#: What a list may name besides terminals.
GROUPS = ("@f", "@w")
CONNECTIONS_MOST = 5
#: What only the parties of a permitted call may ever read.
TOLD = {"Callee Address", "Callee Port", "Caller ID", "Password", "Encrypt Key", "Reply Password"}
#: What only a permitted caller may be told.
CAUSES = {
    "Request Accepted.",
    "Callee not Found.",
    "Callee not Connected.",
    "Callee is Busy.",
    "Too Many Requests.",
    "Service Unavailable.",
}
DENIED = ["NOTIFY", "Permission Denied."]

identifiers = st.sampled_from(NAMES)
lists = st.lists(st.sampled_from((*CALLEES, *GROUPS)), min_size=1, max_size=3).map(",".join)
words = st.sampled_from(["Add", "Add", "Add", "Delete", "Delete", "Create"])
edits = st.builds("{} {}".format, words, lists) | st.just("Create")
marks = st.booleans()
picks = st.integers(0, 1000)


class Ledger:
    """What every connection has asked and not been answered; judges what it reads.

    It knows the permits (as acknowledged) and the questions, and nothing else of the mediator.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self.bare: dict[str, list[str]] = {}
        self.marked: dict[tuple[str, str], str] = {}
        self.passwords: dict[str, str] = {}  # by session
        self.ports: dict[str, str] = {}  # whose each is
        #: Each address that was read: of which terminal, by which, host, port, session.
        self.read: Counter[tuple[str, str, str, int, str]] = Counter()

    def asks(self, connection: Connection, transaction: str | None, callee: str = "") -> None:
        """A request goes out; ``callee`` only if it is a call."""
        if transaction is None:
            self.bare.setdefault(connection.name, []).append(callee)
        else:
            self.marked[connection.name, transaction] = callee

    def judge(self, connection: Connection, message: Message) -> None:
        """See whether a connection may have read this, now."""
        fields = message.fields
        if message.verb == "QUERY":
            asking = [*itertools.chain(*self.bare.values()), *self.marked.values()]
            assert message.statement == "STATUS"
            assert connection.identifier in asking, "asked though nobody calls (I5)"
            return
        if "Caller ID" in fields:
            accepts = self._model.accepts(connection.identifier, fields["Caller ID"])
            assert accepts, "told of a caller whom it does not accept (I1)"
            assert fields["Session"] not in self.passwords, "a session came twice (A10)"
            self.passwords[fields["Session"]] = fields["Password"]
            return
        if message.statement in ("Superseded.", "Terminate."):
            assert not TOLD & set(fields)
            return
        self._judge_answer(connection, message)

    def _judge_answer(self, connection: Connection, message: Message) -> None:
        fields = message.fields
        transaction = fields.get("Transaction")
        last = message.statement != "Request Accepted."
        if transaction is None:
            waiting = self.bare.get(connection.name)
            assert waiting, "an answer to nothing (I11)"
            callee = waiting.pop(0) if last else waiting[0]
        else:
            key = (connection.name, transaction)
            assert key in self.marked, "an answer to nothing (I11)"
            callee = self.marked.pop(key) if last else self.marked[key]
        permitted = bool(callee) and self._model.accepts(callee, connection.identifier)
        if message.statement in CAUSES:
            assert permitted, "a cause was told to whom nothing may be told (A20, I1)"
        if TOLD & set(fields):
            assert permitted, "told to whom the callee does not accept (I1, I2)"
            assert fields["Callee"] == callee, "told in answer to another question (I11)"
            owner = self.ports[fields["Callee Port"]]
            assert owner == callee, "told another's address (I1, I12)"
            where = (fields["Callee Address"], int(fields["Callee Port"]))
            self.read[callee, connection.identifier, *where, fields["Session"]] += 1
        if callee and not permitted:
            lines = message.encode().decode().split("\r\n")[:-2]
            end = [] if transaction is None else [f"Transaction:{transaction}", "Code:403"]
            assert lines == DENIED + end, "who is not permitted saw a difference (I6)"


class MediatorMachine(RuleBasedStateMachine):
    """A mediator, terminals that do anything, and the model."""

    def __init__(self) -> None:
        super().__init__()
        self.ports = itertools.count(2000)
        self.tokens = itertools.count(1)
        self.serial = itertools.count(1)
        self.ringing: dict[str, Dial] = {}

    @initialize(
        slow=marks,
        status=st.sampled_from([True, True, True, False]),
        accepted=st.tuples(*[st.sampled_from(["Ia,Ib,Ic", "@f", "Ib,@f", "Ic,Id"])] * 3),
        marked=st.tuples(marks, marks, marks),
    )
    def begin(
        self, slow: bool, status: bool, accepted: tuple[str, ...], marked: tuple[bool, ...]
    ) -> None:
        """Terminals that accept some others come on line.

        The store is slow or not, and the status asked or not.
        """
        self.store = SlowStore()
        self.store.at_once = True
        self.scene = Scene(store=self.store, ask_status=status, hub={"login_timeout": None})
        self.model = Model(slow=False, status=status)
        self.ledger = Ledger(self.model)
        self._regroups("@f", list(NAMES))
        for name, names, mark in zip(NAMES, accepted, marked, strict=True):
            connection = self._connect(name, self._token(mark))
            self._is_at(connection, None, 3600, [f"Create {names}"])
        self.store.at_once = not slow
        self.model.slow = slow

    # Who.

    def _some(self, pick: int) -> Connection:
        connections = self.model.connections
        return connections[pick % len(connections)]

    def _token(self, marked: bool) -> str | None:
        return f"t{next(self.tokens)}" if marked else None

    def _connect(self, identifier: str, token: str | None) -> Connection:
        name = f"c{next(self.serial)}"
        self.scene.connect(name)
        connection = self.model.connected(name, identifier)
        self._registers(connection, token)
        return connection

    def _types(self, connection: Connection, text: str) -> None:
        self.scene.clients[connection.name].type(text)

    def _registers(
        self, connection: Connection, token: str | None, *lines: str, **also: Any
    ) -> None:
        mark = [f"Transaction:{token}"] if token else []
        self.ledger.asks(connection, token)
        self._types(connection, register(connection.identifier, *lines, *mark))
        self.model.registers(connection, token, also.pop("edits", []), **also)

    @property
    def _any(self) -> bool:
        return bool(self.model.connections)

    # What happens.

    @precondition(lambda self: len(self.model.connections) < CONNECTIONS_MOST)
    @rule(identifier=identifiers, marked=marks, registers=st.sampled_from([True, True, False]))
    def connects(self, identifier: str, marked: bool, registers: bool) -> None:
        """A terminal connects and says who it is, and perhaps where."""
        connection = self._connect(identifier, self._token(marked))
        if registers:
            self._is_at(connection, self._token(marked), 3600, [])

    @precondition(lambda self: self._any)
    @rule(pick=picks, marked=marks, changes=st.lists(edits, min_size=1, max_size=2))
    def edits_permits(self, pick: int, marked: bool, changes: list[str]) -> None:
        """It edits its permits."""
        lines = [f"Accept:{changes[0]}", *changes[1:]]
        self._registers(self._some(pick), self._token(marked), *lines, edits=changes)

    @rule(
        name=st.sampled_from(GROUPS), members=st.lists(identifiers, max_size=3) | st.just([*NAMES])
    )
    def regroups(self, name: str, members: list[str]) -> None:
        """The operator says who is in a group."""
        self._regroups(name, members)

    def _regroups(self, name: str, members: list[str]) -> None:
        doing = Deferred.fromCoroutine(self.scene.context.permit_admin.regroup(name, members))
        doing.addErrback(lambda failure: failure.trap(StoreFailed))
        self.model.regroups(name, members)
        settle(self.scene.clock)

    @precondition(lambda self: self._any)
    @rule(
        pick=picks,
        marked=marks,
        expires=st.sampled_from([3600, 4, 4]),
        change=st.none() | edits,
    )
    def registers(self, pick: int, marked: bool, expires: int, change: str | None) -> None:
        """It registers where it is, and, where the store is fast, perhaps permits with it."""
        changes = [] if change is None or self.model.slow else [change]
        self._is_at(self._some(pick), self._token(marked), expires, changes)

    def _is_at(
        self, connection: Connection, token: str | None, expires: int, changes: list[str]
    ) -> None:
        port = next(self.ports)
        self.ledger.ports[str(port)] = connection.identifier
        lines = ["Address:127.0.0.1", f"Port:{port}", f"Expires:{expires}"]
        if changes:
            lines += [f"Accept:{changes[0]}", *changes[1:]]
        self._registers(connection, token, *lines, port=port, expires=expires, edits=changes)

    @precondition(lambda self: self._any)
    @rule(pick=picks, marked=marks)
    def withdraws_its_address(self, pick: int, marked: bool) -> None:
        """It is nowhere now."""
        self._registers(self._some(pick), self._token(marked), "Expires:0", withdraws=True)

    @precondition(lambda self: self._any)
    @rule(pick=picks, marked=marks, callee=st.sampled_from(CALLEES))
    def queries(self, pick: int, marked: bool, callee: str) -> None:
        """It asks for another."""
        self._queries(self._some(pick), marked, callee)

    @precondition(lambda self: self._permitted())
    @rule(pick=picks, marked=marks)
    def queries_whom_it_may(self, pick: int, marked: bool) -> None:
        """It asks for one that accepts it."""
        pairs = self._permitted()
        caller, callee = pairs[pick % len(pairs)]
        self._queries(caller, marked, callee)

    @precondition(lambda self: self._permitted())
    @rule(pick=picks, marked=marks, others=st.lists(picks, max_size=2))
    def calls_several(self, pick: int, marked: bool, others: list[int]) -> None:
        """It asks for some that accept it, one after the other; the last one can take a call."""
        for one in [*others, pick]:
            self.queries_whom_it_may(one, marked)
            self.each_has_read_what_it_should()
        asked = [one for one in self._asked() if one.questions[-1].call in self.model.calls[-1:]]
        for connection in asked:
            self._answers(connection, connection.questions[-1].key, "STATUS Acceptable.")

    def _permitted(self) -> list[tuple[Connection, str]]:
        return [
            (one, callee)
            for one in self.model.connections
            for callee in self.model.places
            if self.model.accepts(callee, one.identifier)
        ]

    def _queries(self, caller: Connection, marked: bool, callee: str) -> None:
        token = self._token(marked)
        self.ledger.asks(caller, token, callee)
        before = len(self.scene.dials)
        mark = [f"Transaction:{token}"] if token else []
        self._types(caller, query(caller.identifier, callee, *mark))
        self.model.queries(caller, token, callee)
        for dial in self.scene.dials[before:]:
            self.ringing[callee] = dial
            assert dial.port == self.model.dials[callee].port

    def _asked(self) -> list[Connection]:
        return [one for one in self.model.connections if one.questions]

    @precondition(lambda self: self._asked())
    @rule(
        pick=picks,
        which=st.none() | picks,
        status=st.sampled_from(
            ["STATUS Acceptable.", "STATUS Acceptable.", "STATUS Busy.", "STATUS Perhaps."]
        ),
    )
    def answers(self, pick: int, which: int | None, status: str) -> None:
        """It answers a question: the oldest, or one that it names."""
        asked = self._asked()
        connection = asked[pick % len(asked)]
        questions = connection.questions
        key = None if which is None else questions[which % len(questions)].key
        self._answers(connection, key, status)

    @precondition(lambda self: self._any)
    @rule(pick=picks, key=st.none() | st.sampled_from(["1", "2", "t1", "x"]))
    def answers_perhaps_nothing(self, pick: int, key: str | None) -> None:
        """It says a status, asked or not, also to the question of another."""
        self._answers(self._some(pick), key, "STATUS Acceptable.")

    def _answers(self, connection: Connection, key: str | None, status: str) -> None:
        mark = "" if key is None else f"Transaction:{key}\n"
        self._types(connection, f"NOTIFY\n{status}\n{mark}\n")
        self.model.answers(connection, key, status)

    @precondition(lambda self: len(self.model.connections) > 2)
    @rule(pick=picks)
    def leaves(self, pick: int) -> None:
        """Its connection is cut."""
        connection = self._some(pick)
        self._read(connection.name)
        self.scene.clients.pop(connection.name).vanish()
        self.model.leaves(connection)
        self.ledger.bare.pop(connection.name, None)
        for key in [key for key in self.ledger.marked if key[0] == connection.name]:
            del self.ledger.marked[key]

    @rule(seconds=st.sampled_from([0.713, 1.371, 2.937, 5.193, 31.31]))
    def time_passes(self, seconds: float) -> None:
        """Time passes."""
        self.scene.broker.advance(seconds)
        self.model.passes(seconds)
        self.ringing = {name: dial for name, dial in self.ringing.items() if not dial.over}

    @precondition(lambda self: self.model.committing)
    @rule(fails=st.sampled_from([False, False, False, True]))
    def a_commit_ends(self, fails: bool) -> None:
        """The store has kept its oldest change, or can't."""
        commit = self.store.pending.pop(0)
        if fails:
            self.model.commit_fails()
            commit.errback(StoreFailed("why"))
        else:
            self.model.commits()
            commit.callback(None)
        settle(self.scene.clock)

    @precondition(lambda self: self.ringing)
    @rule(pick=picks, told=st.sampled_from([True, True, False]))
    def a_dial_ends(self, pick: int, told: bool) -> None:
        """A dial is answered, or not."""
        names = list(self.ringing)
        name = names[pick % len(names)]
        dial = self.ringing.pop(name)
        if told:
            assert dial.accept().text() == "NOTIFY\nConnection Requested.\n\n"
        else:
            dial.refuse()
        self.model.dial_ends(name, told=told)

    @precondition(lambda self: self._any and self.model.number)
    @rule(pick=picks, which=picks, ends=marks)
    def reports(self, pick: int, which: int, ends: bool) -> None:
        """It says that a session, its own or another's, began or is over."""
        number = 1 + which % self.model.number
        connection = self._some(pick)
        says = "End:Completed" if ends else "Begin."
        session = self.scene.drawn[f"session{number}"]
        self._types(connection, f"NOTIFY\nSession:{session}\n{says}\n\n")
        (self.model.ends if ends else self.model.begins)(connection, number)

    @precondition(lambda self: self._any)
    @rule(pick=picks, marked=marks, which=st.integers(0, 5), callee=identifiers)
    def is_refused(self, pick: int, marked: bool, which: int, callee: str) -> None:
        """It asks what is refused in any state: nothing changes, and no other hears of it (I5)."""
        connection = self._some(pick)
        who = connection.identifier
        other = next(name for name in NAMES if name != who)
        foreign = "Registration Failed.\nCause:this connection belongs to another identifier\n"
        text, answer, code = (
            (register(other, f"Accept:Create {who}"), foreign, 403),
            (register(other, "Address:127.0.0.1", "Port:9"), foreign, 403),
            (query(other, callee), "Permission Denied.\n", 403),
            (
                register(who, f"Accept:Create {other}", "Address:10.0.0.1"),
                "Registration Failed.\nCause:a private address is accepted only over a connection"
                " from a private address\n",
                400,
            ),
            (
                register(who, "Accept:Create", "Control:Create Ix"),
                "Registration Failed.\nCause:Control is not offered by this server\n",
                400,
            ),
            (
                f"QUERY\nLOOKUP\nCallee:{callee}\n\n",
                "Bad Message.\nCause:no request of this kind is known here\n",
                400,
            ),
        )[which]
        token = self._token(marked)
        mark = "" if token is None else f"Transaction:{token}\n"
        stored = len(self.store.commits)
        before = self._state()
        self.ledger.asks(connection, token)
        self._types(connection, text.removesuffix("\n") + mark + "\n")
        self.model.refused(connection, token, f"NOTIFY\n{answer}\n", code)
        assert self._state() == before
        assert len(self.store.commits) == stored

    def _state(self) -> Any:
        reach = self.scene.context.connections
        return [
            (
                self.scene.context.permits.table.accepted(name),
                self.scene.address(name),
                reach.active(name),
            )
            for name in CALLEES
        ]

    # What must hold.

    def _read(self, name: str) -> None:
        """Take what the model says that one connection has read, and judge what it has."""
        client = self.scene.clients[name]
        connection = next(one for one in self.model.connections if one.name == name)
        for message in parse_all(bytes(client.transport.sent))[0]:
            self.ledger.judge(connection, message)

    @invariant()
    def each_has_read_what_it_should(self) -> None:
        """The texts are the model's, and may be told."""
        if not hasattr(self, "model"):
            return
        expected = self.model.take()
        for name in self.scene.clients:
            self._read(name)
        self.scene.reads(**expected)
        assert self._disclosed() <= self.ledger.read, "written down as told, and not told (I9)"
        values = list(self.scene.drawn.values())
        assert len(values) == len(set(values)), "something drawn at random came twice (A10)"

    @invariant()
    def tables_are_as_the_model_says(self) -> None:
        """Permits, addresses, reach and sessions are the model's (I5, I9)."""
        if not hasattr(self, "model"):
            return
        for name in CALLEES:
            permits = tuple(self.model.permits.get(name, ()))
            assert self.scene.context.permits.table.accepted(name) == permits
            port, until = self.model.places.get(name, (0, 0.0))
            expected = ("127.0.0.1", port) if until > self.model.now else None
            assert self.scene.address(name) == expected
            reached = self.model.reached.get(name)
            held = self.scene.context.connections.active(name)
            client = None if reached is None else self.scene.clients[reached.name]
            assert held is (None if client is None else client.protocol.receiver)
        assert len(self.scene.context.sessions) == len(self.model.sessions)

    def _disclosed(self) -> Counter[tuple[str, str, str, int, str]]:
        return Counter(
            (told.owner, told.recipient, told.host, told.port, told.session)
            for told in self.store.told
        )

    def teardown(self) -> None:
        """Nothing stays behind, and no commit waits for ever (I15)."""
        if not hasattr(self, "model"):
            return
        self.store.at_once = True
        while self.store.pending:
            self.store.pending.pop(0).callback(None)
            settle(self.scene.clock)
        for name in self.scene.clients:
            self._read(name)
        self.scene.finish()  # others may be told something as one leaves, and nobody reads that
        assert self.ledger.read <= self._disclosed(), "told, and not written down (I9)"


class MachineTests:
    """The mediator does what the model does."""

    def test_against_the_model(self) -> None:
        """Any sequence of steps: I1, I2, I5, I6, I11 after each (A1–A5, A8–A11, A13, A20, A24)."""
        run_state_machine_as_test(
            MediatorMachine,
            settings=settings(
                max_examples=MACHINE_EXAMPLES,
                stateful_step_count=50,
                deadline=None,
                database=None,
                report_multiple_bugs=False,
                derandomize=MACHINE_EXAMPLES == EXAMPLES,
            ),
        )
