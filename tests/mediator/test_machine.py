"""Everything at once, in any order: the mediator against a small model of it, step by step."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Sequence
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
from tests.mediator.model import Connection, Model
from tests.mediator.scene import (
    DENIED,
    REQUESTED,
    Scene,
    SlowStore,
    bad,
    begin,
    end,
    failed,
    query,
    register,
)
from tests.support.clock import settle
from tests.support.reactor import Dial

#: The number of sequences, always the same ones; with MACHINE_EXAMPLES set, that many new ones.
EXAMPLES = 80
MACHINE_EXAMPLES = int(os.environ.get("MACHINE_EXAMPLES", EXAMPLES))

NAMES = ("Ia", "Ib", "Ic")
#: Who may be called: one of them never registers.
CALLEES = (*NAMES, "Id")
#: What a list may name besides terminals.
GROUPS = ("@f", "@w")
CONNECTIONS_MOST = 5
FOREIGN = failed("this connection belongs to another identifier")
ELSEWHERE = "a private address is accepted only over a connection from a private address"
#: What is refused in any state, of a terminal and another that it names: text, answer and code.
REFUSED: tuple[tuple[Callable[[str, str], str], str, int], ...] = (
    (lambda me, other: register(other, f"Accept:Create {me}"), FOREIGN, 403),
    (lambda me, other: register(other, "Address:127.0.0.1", "Port:9"), FOREIGN, 403),
    (lambda me, other: query(other, me), DENIED, 403),
    (
        lambda me, other: register(me, f"Accept:Create {other}", "Address:10.0.0.1"),
        failed(ELSEWHERE),
        400,
    ),
    (
        lambda me, other: register(me, "Accept:Create", "Control:Create Ix"),
        failed("Control is not offered by this server"),
        400,
    ),
    (
        lambda me, other: f"QUERY\nLOOKUP\nCallee:{other}\n\n",
        bad("no request of this kind is known here"),
        400,
    ),
)

identifiers = st.sampled_from(NAMES)
lists = st.lists(st.sampled_from((*CALLEES, *GROUPS)), min_size=1, max_size=3).map(",".join)
words = st.sampled_from(["Add", "Add", "Add", "Delete", "Delete", "Create"])
edits = st.builds("{} {}".format, words, lists) | st.just("Create")
marks = st.booleans()
picks = st.integers(0, 1000)
some = precondition(lambda self: self.model.connections)
some_permitted = precondition(lambda self: self._permitted())
some_asked = precondition(lambda self: self._asked())


def marked(text: str, transaction: str | None) -> str:
    """A request with its transaction, if it has one."""
    return text if transaction is None else f"{text[:-1]}Transaction:{transaction}\n\n"


def accept(changes: Sequence[str]) -> list[str]:
    """Edits as lines."""
    return [f"Accept:{changes[0]}", *changes[1:]] if changes else []


class MediatorMachine(RuleBasedStateMachine):
    """A mediator, terminals that do anything, and the model."""

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
        self.ports = itertools.count(2000)
        self.serial = itertools.count(1)
        self.ringing: dict[str, Dial] = {}
        self.store = SlowStore()
        self.store.at_once = True
        self.scene = Scene(store=self.store, ask_status=status, hub={"login_timeout": None})
        self.model = Model(status=status)
        self.regroups("@f", list(NAMES))
        for name, names, mark in zip(NAMES, accepted, marked, strict=True):
            self._is_at(self._connect(name, mark), False, 3600, [f"Create {names}"])
        self.store.at_once = not slow
        self.model.slow = slow

    # Which.

    def _some(self, pick: int) -> Connection:
        connections = self.model.connections
        return connections[pick % len(connections)]

    def _transaction(self, is_marked: bool) -> str | None:
        return f"t{next(self.serial)}" if is_marked else None

    def _permitted(self) -> list[tuple[Connection, str]]:
        return [
            (one, callee)
            for one in self.model.connections
            for callee in self.model.places
            if self.model.accepts(callee, one.identifier)
        ]

    def _asked(self) -> list[Connection]:
        return [one for one in self.model.connections if one.questions]

    # What happens.

    def _connect(self, identifier: str, is_marked: bool) -> Connection:
        name = f"c{next(self.serial)}"
        self.scene.connect(name)
        connection = self.model.connected(name, identifier)
        self._registers(connection, is_marked, [])
        return connection

    def _types(self, connection: Connection, text: str, transaction: str | None = None) -> None:
        self.scene.clients[connection.name].type(marked(text, transaction))

    def _registers(
        self, connection: Connection, is_marked: bool, changes: list[str], *lines: str, **also: Any
    ) -> None:
        transaction = self._transaction(is_marked)
        text = register(connection.identifier, *lines, *accept(changes))
        self._types(connection, text, transaction)
        self.model.registers(connection, transaction, changes, **also)

    def _is_at(
        self, connection: Connection, is_marked: bool, expires: int, changes: list[str]
    ) -> None:
        port = next(self.ports)
        lines = ("Address:127.0.0.1", f"Port:{port}", f"Expires:{expires}")
        self._registers(connection, is_marked, changes, *lines, port=port, expires=expires)

    @precondition(lambda self: len(self.model.connections) < CONNECTIONS_MOST)
    @rule(identifier=identifiers, marked=marks, registers=st.sampled_from([True, True, False]))
    def connects(self, identifier: str, marked: bool, registers: bool) -> None:
        """A terminal connects and says which it is, and perhaps where."""
        connection = self._connect(identifier, marked)
        if registers:
            self._is_at(connection, marked, 3600, [])

    @some
    @rule(pick=picks, marked=marks, changes=st.lists(edits, min_size=1, max_size=2))
    def edits_permits(self, pick: int, marked: bool, changes: list[str]) -> None:
        """It edits its permits."""
        self._registers(self._some(pick), marked, changes)

    @rule(
        name=st.sampled_from(GROUPS), members=st.lists(identifiers, max_size=3) | st.just([*NAMES])
    )
    def regroups(self, name: str, members: list[str]) -> None:
        """The operator says who is in a group."""
        doing = Deferred.fromCoroutine(self.scene.context.permit_admin.regroup(name, members))
        doing.addErrback(lambda failure: failure.trap(StoreFailed))
        self.model.regroups(name, members)
        settle(self.scene.clock)

    @some
    @rule(
        pick=picks,
        marked=marks,
        expires=st.sampled_from([3600, 4, 4]),
        change=st.none() | edits,
    )
    def registers(self, pick: int, marked: bool, expires: int, change: str | None) -> None:
        """It registers where it is, and, where the store is fast, perhaps permits with it."""
        changes = [] if change is None or self.model.slow else [change]
        self._is_at(self._some(pick), marked, expires, changes)

    @some
    @rule(pick=picks, marked=marks)
    def withdraws_its_address(self, pick: int, marked: bool) -> None:
        """It is nowhere now."""
        self._registers(self._some(pick), marked, [], "Expires:0", withdraws=True)

    @some
    @rule(pick=picks, marked=marks, callee=st.sampled_from(CALLEES))
    def queries(self, pick: int, marked: bool, callee: str) -> None:
        """It calls another."""
        self._queries(self._some(pick), marked, callee)

    @some_permitted
    @rule(pick=picks, marked=marks)
    def queries_as_permitted(self, pick: int, marked: bool) -> None:
        """It calls one that accepts it."""
        pairs = self._permitted()
        self._queries(pairs[pick % len(pairs)][0], marked, pairs[pick % len(pairs)][1])

    @some_permitted
    @rule(pick=picks, marked=marks, others=st.lists(picks, max_size=2))
    def calls_several(self, pick: int, marked: bool, others: list[int]) -> None:
        """It calls some that accept it, one after the other; the last one can take a call."""
        for one in [*others, pick]:
            self.queries_as_permitted(one, marked)
            self.each_has_read_what_it_should()
        for connection in self._asked():
            key, call = [*connection.questions.items()][-1]
            if call in self.model.calls[-1:]:
                self._answers(connection, key, "STATUS Acceptable.")

    def _queries(self, caller: Connection, is_marked: bool, callee: str) -> None:
        transaction = self._transaction(is_marked)
        before = len(self.scene.dials)
        self._types(caller, query(caller.identifier, callee), transaction)
        self.model.queries(caller, transaction, callee)
        for dial in self.scene.dials[before:]:
            self.ringing[callee] = dial
            assert dial.port == self.model.dials[callee][0]

    @some_asked
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
        keys = [*connection.questions]
        self._answers(connection, None if which is None else keys[which % len(keys)], status)

    @some
    @rule(pick=picks, key=st.none() | st.sampled_from(["1", "2", "t1", "x"]))
    def answers_perhaps_nothing(self, pick: int, key: str | None) -> None:
        """It says a status, asked or not, also to the question of another."""
        self._answers(self._some(pick), key, "STATUS Acceptable.")

    def _answers(self, connection: Connection, key: str | None, status: str) -> None:
        self._types(connection, f"NOTIFY\n{status}\n\n", key)
        self.model.answers(connection, key, status)

    @precondition(lambda self: len(self.model.connections) > 2)
    @rule(pick=picks)
    def leaves(self, pick: int) -> None:
        """Its connection is cut."""
        connection = self._some(pick)
        self.scene.clients.pop(connection.name).vanish()
        self.model.leaves(connection)

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
        self.model.commit_ends(fails=fails)
        commit = self.store.pending.pop(0)
        if fails:
            commit.errback(StoreFailed("why"))
        else:
            commit.callback(None)
        settle(self.scene.clock)

    @precondition(lambda self: self.ringing)
    @rule(pick=picks, succeeds=st.sampled_from([True, True, False]))
    def a_dial_ends(self, pick: int, succeeds: bool) -> None:
        """A dial is answered, or not."""
        names = list(self.ringing)
        name = names[pick % len(names)]
        dial = self.ringing.pop(name)
        if succeeds:
            assert dial.accept().text() == REQUESTED
        else:
            dial.refuse()
        self.model.dial_ends(name, succeeds=succeeds)

    @precondition(lambda self: self.model.connections and self.model.number)
    @rule(pick=picks, which=picks, ends=marks)
    def reports(self, pick: int, which: int, ends: bool) -> None:
        """It says that a session, its own or another's, began or ended."""
        number = 1 + which % self.model.number
        connection = self._some(pick)
        session = self.scene.drawn[f"session{number}"]
        self._types(connection, end(session) if ends else begin(session))
        (self.model.ends if ends else self.model.begins)(connection, number)

    @some
    @rule(pick=picks, marked=marks, which=st.integers(0, len(REFUSED) - 1))
    def is_refused(self, pick: int, marked: bool, which: int) -> None:
        """It asks what is refused in any state: nothing is stored, no other hears of it (I5)."""
        connection = self._some(pick)
        text, answer, code = REFUSED[which]
        transaction = self._transaction(marked)
        other = next(name for name in NAMES if name != connection.identifier)
        stored = len(self.store.commits)
        self._types(connection, text(connection.identifier, other), transaction)
        self.model.refused(connection, transaction, answer, code)
        assert len(self.store.commits) == stored

    # What must hold.

    @invariant()
    def each_has_read_what_it_should(self) -> None:
        """Each has read the model's texts (I1, I2, I6, I11)."""
        if not hasattr(self, "model"):
            return
        self.scene.reads(**self.model.take())
        values = list(self.scene.drawn.values())
        assert len(values) == len(set(values)), "something drawn at random came twice (A10)"
        assert self._recorded() <= self._disclosed(), "recorded, and not sent (I9)"

    @invariant()
    def tables_are_as_the_model_says(self) -> None:
        """Permits, addresses, active connections and sessions are the model's (I5, I9)."""
        if not hasattr(self, "model"):
            return
        context, model = self.scene.context, self.model
        for name in CALLEES:
            assert context.permits.table.accepted(name) == tuple(model.permits.get(name, ()))
            port, until = model.places.get(name, (0, 0.0))
            assert self.scene.address(name) == (("127.0.0.1", port) if until > model.now else None)
            active = model.active.get(name)
            client = None if active is None else self.scene.clients[active.name].protocol.receiver
            assert context.connections.active(name) is client
        assert len(context.sessions) == len(model.sessions)

    def _recorded(self) -> Counter[tuple[object, ...]]:
        told = self.store.told
        return Counter((one.owner, one.recipient, one.host, one.port, one.session) for one in told)

    def _disclosed(self) -> Counter[tuple[object, ...]]:
        return Counter(
            (callee, caller, "127.0.0.1", port, self.scene.drawn[f"session{number}"])
            for callee, caller, port, number in self.model.disclosed
        )

    def teardown(self) -> None:
        """Nothing stays behind, and no commit waits for ever (I15)."""
        if not hasattr(self, "model"):
            return
        self.store.at_once = True
        while self.store.pending:
            self.store.pending.pop(0).callback(None)
            settle(self.scene.clock)
        self.scene.finish()  # others may be told something as one leaves, and nobody reads that
        assert self._disclosed() <= self._recorded(), "sent, and not recorded (I9)"


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
