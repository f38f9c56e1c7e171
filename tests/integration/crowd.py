"""A crowd at a broker that is killed again and again: it keeps what it was told, and looks for it.

All of it runs in one thread, so that what was acknowledged before something was asked is known.
Each terminal keeps one edit of its list and one query under way, and so does the operator with
changes of groups and accounts.
"""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple, TypeVar

from broker.messages.message import Message, parse
from tests.integration.serial import DENIED, DONE, GRANTED, Entries, Lists, call, edit, forget
from tests.support.processes import LOOPBACK, PATIENCE, TWISTD, Processes, Running, listening

#: The terminals; the first two have a second connection, from which they call besides.
TERMINALS: Final = ("I0", "I1", "I2", "I3")
TWICE: Final = TERMINALS[:2]
GROUPS: Final = ("@g0", "@g1")
#: Accounts that come and go.
GUESTS: Final = ("X0", "X1", "X2")
#: What a caller may be told that isn't for the permits to say.
ELSEWISE: Final = frozenset(
    ("Callee not Connected.", "Callee not Found.", "Callee is Busy.", "Service Unavailable.")
)
#: Seconds before a kill from which on ``--ledger behind`` may lose what was told.
BEHIND: Final = 0.5

T = TypeVar("T")
#: Asks something at each ``yield``, and is sent the answer.
Flow = Generator[Any, Any, None]


class Account(NamedTuple):
    """One account, as the operator made it.

    :ivar version: which of its passwords is in force
    """

    version: int
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kept:
    """What the operator has made.

    :ivar accounts: those of guests
    :ivar groups: who is in each
    """

    accounts: dict[str, Account]
    groups: dict[str, frozenset[str]]

    def version(self, identifier: str) -> int:
        """Which password is in force; 0 where there is no such account."""
        return self.accounts[identifier].version if identifier in self.accounts else 0

    def names(self) -> dict[str, tuple[str, ...]]:
        """The names of each account."""
        return {identifier: account.names for identifier, account in self.accounts.items()}

    def with_account(self, identifier: str, account: Account | None) -> Kept:
        """The same with an account made, changed or removed."""
        return replace(self, accounts=_with(self.accounts, identifier, account))

    def with_group(self, group: str, members: Iterable[str] | None) -> Kept:
        """The same with a group made, changed or deleted."""
        these = None if members is None else frozenset(members)
        return replace(self, groups=_with(self.groups, group, these))


def _with(known: dict[str, T], key: str, value: T | None) -> dict[str, T]:
    rest = {one: known[one] for one in known if one != key}
    return rest if value is None else {**rest, key: value}


class Told(NamedTuple):
    """An address that was told.

    :ivar when: by the steady clock, when it was read
    :ivar sure: whether the ledger must have it
    """

    caller: str
    callee: str
    session: str
    when: float
    sure: bool


class Connection:
    """One connection to the broker, as bytes."""

    end = b"\r\n\r\n"

    def __init__(self, crowd: Crowd, made: socket.socket) -> None:
        self.crowd = crowd
        self._made = made
        self._data = b""
        crowd.selector.register(made, selectors.EVENT_READ, self)

    def send(self, text: str) -> None:
        """Send something, unless nobody is there any more."""
        with suppress(ConnectionError):
            self._made.sendall(text.encode())

    def readable(self) -> None:
        """Take what has come."""
        try:
            data = self._made.recv(65536)
        except ConnectionError:
            data = b""
        if not data:
            self.close()
            return
        *whole, self._data = (self._data + data).split(self.end)
        for one in whole:
            self.crowd.heard += 1
            self.take(one)

    def take(self, one: bytes) -> None:
        """Take one message or line."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing more is to come."""
        self.crowd.selector.unregister(self._made)
        self._made.close()


class Terminal(Connection):
    """A terminal's connection."""

    def __init__(self, crowd: Crowd, identifier: str) -> None:
        super().__init__(crowd, socket.create_connection(("127.0.0.1", crowd.port), PATIENCE))
        self.identifier = identifier
        self._flows: dict[str, Flow] = {}
        self._asked = 0

    def go(self, flow: Flow) -> None:
        """Do one thing after the other, beside others."""
        self._ask(flow, next(flow, None))

    def _ask(self, flow: Flow, lines: str | None) -> None:
        if lines is not None:
            self._asked += 1
            self._flows[str(self._asked)] = flow
            self.send(f"{lines}\nTransaction:{self._asked}\n\n")

    def take(self, one: bytes) -> None:
        """An answer goes to who asked; a callee is free whenever it is asked."""
        message = parse(one)
        if message.verb == "QUERY":
            asked = message.transaction
            told = "" if asked is None else f"Transaction:{asked}\n"
            self.send(f"NOTIFY\nSTATUS Acceptable.\n{told}\n")
        elif message.transaction is not None and message.get("Code") != "100":
            flow = self._flows.pop(message.transaction)
            with suppress(StopIteration):
                self._ask(flow, flow.send(message))


class AdminApi(Connection):
    """The operator's connection: a request at a time."""

    end = b"\n"

    def __init__(self, crowd: Crowd, path: Path) -> None:
        made = socket.socket(socket.AF_UNIX)
        made.settimeout(PATIENCE)
        made.connect(str(path))
        super().__init__(crowd, made)
        self._flow: Flow | None = None
        self._rows: list[dict[str, Any]] = []

    def go(self, flow: Flow) -> None:
        """Do one thing after the other."""
        self._flow = flow
        self._ask(next(flow, None))

    def _ask(self, request: dict[str, Any] | None) -> None:
        self._rows = []
        if request is not None:
            self.send(json.dumps(request) + "\n")

    def take(self, one: bytes) -> None:
        """A row, or the end of an answer."""
        row = json.loads(one)
        assert "error" not in row, row
        if "done" not in row:
            self._rows.append(row)
        elif self._flow is not None:
            with suppress(StopIteration):
                self._ask(self._flow.send(self._rows))


class Crowd:
    """All who use the broker, and what they know.

    :ivar heard: how many messages and lines have come since it was started
    :ivar counts: what was had how often, in all lives
    :ivar port: where the broker listens
    :ivar selector: what is read
    """

    def __init__(self, processes: Processes, seed: int) -> None:
        self.selector = selectors.DefaultSelector()
        self.heard = 0
        self.counts: Counter[str] = Counter()
        self.port = 0
        self._processes = processes
        self._seed = seed
        self._life = 0
        self._running: Running
        self._operator: AdminApi
        self._terminals: list[Terminal] = []
        self._looking = 0  # so many have not seen yet what is there
        self._quiet = False  # nothing more is to be asked
        self._numbers = 0
        # What is known, and what may be.
        self._lists = {whose: Lists(whose) for whose in TERMINALS}
        self._possible = [(Kept({}, {}), False)]  # each with whether what was asked last was done
        self._unsettled: int | None = None  # what was asked last, where it concerns lists too
        self._epochs: set[str] = set()
        self._tokens: defaultdict[tuple[str, int], list[str]] = defaultdict(list)
        self._sessions: set[str] = set()
        self._told: list[Told] = []
        self._checked = 0  # so many of them have been looked for in the ledger
        self._since = 0  # and all others were told later than this, in seconds since 1970

    # Lives.

    def begin(self) -> None:
        """The first life: everybody gets an account, and it ends in peace."""
        self._start()
        self._operator.go(self._found())
        self._until(lambda: not self._looking)
        self._end()

    def live(self, most: int, *, first: bool) -> None:
        """One life: look at what is there, work, and be killed amid that.

        :param most: how many messages are to come before
        :param first: for ``--ledger``
        """
        began, told = int(time.time()), len(self._told)
        self._start(f"--ledger={'first' if first else 'behind'}")
        self._look()
        self._until(lambda: self.heard >= most)
        self._running.process.kill()
        killed = time.monotonic()
        self._crash()
        if not first:
            for number in range(told, len(self._told)):
                one = self._told[number]
                sure = one.when < killed - BEHIND
                self._told[number] = one._replace(sure=sure)
                self.counts["told behind, and sure"] += sure
        if not self._looking:  # what was told in the lives before has been looked for
            self._since = began - 1

    def stillborn(self) -> None:
        """A life that ends before it has begun."""
        running = self._processes.start(*_BROKER)
        running.wait_for(r".")
        running.process.kill()
        running.wait()
        self.counts["stillborn"] += 1

    def last(self) -> None:
        """The last life: look at everything once more, and end in peace."""
        self._since, self._checked, self._quiet = 0, 0, True
        self._start()
        self._look()
        self._until(lambda: not self._looking)
        self._end()

    def _start(self, *arguments: str) -> None:
        self._life += 1
        self.heard = 0
        self._looking = 1
        self._running = self._processes.start(*_BROKER, *arguments)
        self.port = listening(self._running)
        self._operator = AdminApi(self, self._processes.folder / "broker.admin")

    def _until(self, over: Callable[[], bool]) -> None:
        while not over():
            ready = self.selector.select(PATIENCE)
            assert ready, f"nobody is answered any more:\n{self._running.said[-4000:]}"
            for key, _ in ready:
                key.data.readable()

    def _crash(self) -> None:
        """Read what was said to the end; of the rest nobody knows what became of it."""
        self._drain()
        for lists in self._lists.values():
            lists.crash(self._unsettled)
        self.counts["kills"] += 1
        self.counts["kills while looking"] += bool(self._looking)

    def _end(self) -> None:
        assert self._running.end() == 0, self._running.said
        self._drain()

    def _drain(self) -> None:
        quiet, self._quiet = self._quiet, True
        self._until(lambda: not self.selector.get_map())
        self._quiet = quiet
        self._running.wait()
        assert "Traceback" not in self._running.said, self._running.said
        self._terminals = []

    def _choices(self, *what: object) -> Random:
        """What somebody chooses in one life, whatever the others do meanwhile."""
        return Random(f"{self._seed} {self._life} {what}")

    # Looking.

    def _found(self) -> Flow:
        """Give everybody an account, and have all log in once for a token."""
        for identifier in TERMINALS:
            yield {"do": "account add", "identifier": identifier, "password": f"{identifier}-1"}
            self._looking += 1
            terminal = Terminal(self, identifier)
            terminal.go(self._fetch(terminal, 1, first=True))
        self._looking -= 1

    def _look(self) -> None:
        """Have everybody log in and look at what is theirs."""
        self._operator.go(self._look_round())
        for number, identifier in enumerate((*TERMINALS, *TWICE)):
            terminal = Terminal(self, identifier)
            self._terminals.append(terminal)
            self._looking += 1
            terminal.go(self._come_back(terminal, second=number >= len(TERMINALS)))

    def _seen(self) -> None:
        """One of those who look is done; once all are, they work."""
        self._looking -= 1
        if not self._looking:
            self._settle()
            if not self._quiet:
                self._work()

    def _come_back(self, terminal: Terminal, *, second: bool) -> Flow:
        """A token of any earlier life is good; the list is one that it may be (I8, I9)."""
        whose = terminal.identifier
        token = self._choices(whose, second).choice(self._tokens[whose, 1])
        where = "" if second else f"\nAddress:127.0.0.1\nPort:{_port(whose)}"
        answer = yield f"REGISTER\nIdentifier:{whose}\nToken:{token}{where}"
        self._logged_in(whose, 1, answer)
        if not second:
            answer = yield "QUERY\nPERMITS"
            self._lists[whose].seen(_entries(answer))
            self.counts["lists seen"] += 1
        self._seen()

    def _logged_in(self, identifier: str, version: int, answer: Message) -> None:
        assert answer.statement == "Registration Completed.", (identifier, version, answer)
        self._tokens[identifier, version].append(answer.fields["Token"])
        self._epochs.add(answer.fields["Epoch"])
        assert len(self._epochs) == 1, "the store believes to have lost something"

    def _look_round(self) -> Flow:
        """Accounts and groups are what they may be; the ledger has what it must have (I9)."""
        rows = yield {"do": "account list"}
        accounts = {row["identifier"]: tuple(row["names"]) for row in rows}
        assert accounts.keys() >= set(TERMINALS), accounts
        guests = {who: names for who, names in accounts.items() if who in GUESTS}
        groups = {}
        rows = yield {"do": "group list"}
        for name in [row["group"] for row in rows]:
            rows = yield {"do": "group members", "group": name}
            groups[name] = frozenset(row["identifier"] for row in rows)
        self._narrow(
            lambda kept: kept.groups == groups and guests == kept.names(), f"{guests}, {groups}"
        )
        for whose in TERMINALS:
            rows = yield {"do": "who knows", "identifier": whose, "since": self._since}
            self._look_for(whose, {row["session"]: row for row in rows})
        self._checked = len(self._told)
        choices = self._choices("guests")
        for guest in GUESTS:
            self._try_tokens(guest, choices)
        self._seen()

    def _look_for(self, whose: str, known: dict[str, dict[str, Any]]) -> None:
        """What was told of a terminal is in the ledger (I1)."""
        for told in self._told[self._checked :]:
            row = known.get(told.session)
            if told.callee != whose or (row is None and not told.sure):
                continue
            assert row is not None, f"{told} is in no record"
            assert (row["told"], row["port"]) == (told.caller, _port(whose))
            self.counts["records seen"] += 1

    def _try_tokens(self, guest: str, choices: Random) -> None:
        """Those of the password in force are good, and no others; nor are other passwords (I2)."""
        versions = [
            version for (who, version), some in self._tokens.items() if who == guest and some
        ]
        current = {kept.version(guest) for kept, _ in self._possible}
        gone = [version for version in versions if version not in current]
        tried = [version for version in versions if version in current]
        if not tried and len(current) == 1 and (version := min(current)):
            self._try(guest, version, f"Password:{guest}-{version}")  # it had no token yet
        tried += choices.sample(gone, min(2, len(gone)))
        for version in tried:
            self._try(guest, version, f"Token:{choices.choice(self._tokens[guest, version])}")
        if tried and choices.random() < 0.2:
            version = choices.choice(tried)
            self._try(guest, version, f"Password:{guest}-{version}")

    def _try(self, guest: str, version: int, shown: str) -> None:
        self._looking += 1
        terminal = Terminal(self, guest)
        terminal.go(self._log_in(terminal, version, shown))

    def _log_in(self, terminal: Terminal, version: int, shown: str) -> Flow:
        guest = terminal.identifier
        answer = yield f"REGISTER\nIdentifier:{guest}\n{shown}"
        good = answer.statement == "Registration Completed."
        self._narrow(
            lambda kept: (kept.version(guest) == version) is good,
            f"{guest} by {shown[:8]} of version {version}: {answer}",
        )
        if good:
            self._logged_in(guest, version, answer)
        self.counts["guests let in" if good else "guests refused"] += 1
        self._seen()

    def _narrow(self, fits: Callable[[Kept], bool], seen: str) -> None:
        possible = [(kept, had) for kept, had in self._possible if fits(kept)]
        assert possible, f"{seen} fits none of {self._possible}"
        self._possible = possible

    def _settle(self) -> None:
        """What the operator had asked for at the kill was done, in all lists too, or not at all."""
        ways = {had for _, had in self._possible}
        number, self._unsettled = self._unsettled, None
        if number is not None:
            for lists in self._lists.values():
                ways &= lists.had(number)
            assert len(ways) == 1, f"half a change: {self._possible}"
            for lists in self._lists.values():
                lists.settle(number, True in ways)
        self._possible = [(kept, False) for kept, had in self._possible if had in ways]
        assert len(self._possible) == 1

    # Working.

    def _work(self) -> None:
        for number, terminal in enumerate(self._terminals):
            if number < len(TERMINALS):
                terminal.go(self._edit(terminal, self._choices("edits", number)))
            terminal.go(self._call(terminal, self._choices("calls", number)))
        self._operator.go(self._operate(self._choices("operator")))

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _edit(self, terminal: Terminal, choices: Random) -> Flow:
        """Change one's list, one time after the other."""
        lists = self._lists[terminal.identifier]
        others = [*(one for one in TERMINALS if one != terminal.identifier), *GROUPS, *GUESTS]
        while not self._quiet:
            edits = []
            for _ in range(choices.randint(1, 2)):
                word = choices.choice(("Create", "Add", "Add", "Delete"))
                named = choices.sample(others, choices.randint(1, 2 if word == "Delete" else 5))
                counted = [(name, word != "Delete" and choices.random() < 0.5) for name in named]
                edits.append((word, counted))
            number = self._number()
            lists.begin(number, edit(edits))
            answer = yield "REGISTER\nAccept:" + "\n".join(_line(*one) for one in edits)
            assert answer.statement == "Registration Completed.", answer
            lists.end(number, DONE)
            self.counts["edits"] += 1

    def _call(self, terminal: Terminal, choices: Random) -> Flow:
        """Ask for one callee after the other."""
        caller = terminal.identifier
        others = [one for one in TERMINALS if one != caller]
        while not self._quiet:
            callee = choices.choice(others)
            lists = self._lists[callee]
            number = self._number()
            lists.begin(number, call(caller, self._member))
            answer = yield f"QUERY\nCallee:{callee}"
            if "Callee Address" in answer.fields:
                lists.end(number, GRANTED)
                self._tell(caller, callee, answer)
            elif answer.statement == "Permission Denied.":
                lists.end(number, DENIED)
                self.counts["denied"] += 1
            else:
                assert answer.statement in ELSEWISE, answer
                lists.give_up(number)
                self.counts["refused otherwise"] += 1

    def _tell(self, caller: str, callee: str, answer: Message) -> None:
        session = answer.fields["Session"]
        assert session not in self._sessions, "a session was given twice"
        self._sessions.add(session)
        assert (answer.get("Callee"), answer.get("Callee Port")) == (callee, str(_port(callee)))
        self._told.append(Told(caller, callee, session, time.monotonic(), sure=True))
        self.counts["granted"] += 1

    def _member(self, who: str, group: str) -> set[bool]:
        return {who in kept.groups.get(group, ()) for kept, _ in self._possible}

    def _operate(self, choices: Random) -> Flow:
        """Change groups and accounts, one after the other."""
        while not self._quiet:
            ((kept, _),) = self._possible
            request, after, forgotten = self._change(kept, choices)
            number = self._number()
            self._possible = [(kept, False), (after, True)]
            if forgotten:
                self._unsettled = number
            for lists in self._lists.values():
                if forgotten:
                    lists.begin(number, forget(forgotten))
                lists.spread()
            yield request
            self._possible = [(after, False)]
            self._unsettled = None
            if forgotten:
                for lists in self._lists.values():
                    lists.end(number, DONE)
            self.counts[request["do"]] += 1
            version = after.version(str(request.get("identifier")))
            if version > kept.version(str(request.get("identifier"))) and not self._quiet:
                guest = Terminal(self, request["identifier"])
                guest.go(self._fetch(guest, version))

    def _change(self, kept: Kept, choices: Random) -> tuple[dict[str, Any], Kept, str]:
        """What the operator does next.

        :return: the request, what is there after it, and what every list forgets with it
        """
        if choices.random() < 0.8:
            return _regroup(kept, choices)
        guest = choices.choice(GUESTS)
        asked: dict[str, Any] = {"identifier": guest}
        account = kept.accounts.get(guest)
        if account is not None and not self._tokens[guest, account.version]:
            return _regroup(kept, choices)  # it is about to log in
        do = choices.choice(("account reset", "account remove", "account name"))
        if account is None or do == "account reset":
            fresh = Account(self._number(), account.names if account else ())
            asked |= {
                "do": do if account else "account add",
                "password": f"{guest}-{fresh.version}",
            }
            return asked, kept.with_account(guest, fresh), ""
        if do == "account remove":
            return asked | {"do": do}, kept.with_account(guest, None), guest
        name = f"{guest} by another name"
        if name in account.names:
            asked |= {"do": "account name remove", "name": name}
            return asked, kept.with_account(guest, Account(account.version)), ""
        asked |= {"do": "account name add", "name": name}
        return asked, kept.with_account(guest, Account(account.version, (name,))), ""

    def _fetch(self, terminal: Terminal, version: int, *, first: bool = False) -> Flow:
        """Log in with a password, for a token."""
        identifier = terminal.identifier
        answer = yield f"REGISTER\nIdentifier:{identifier}\nPassword:{identifier}-{version}"
        self._logged_in(identifier, version, answer)
        self._looking -= first


def _regroup(kept: Kept, choices: Random) -> tuple[dict[str, Any], Kept, str]:
    group = choices.choice(GROUPS)
    asked: dict[str, Any] = {"group": group}
    before = kept.groups.get(group)
    some = choices.sample(TERMINALS, choices.randint(1, 2))
    if before is None:
        asked |= {"do": "group create", "members": some}
        return asked, kept.with_group(group, some), ""
    if choices.random() < 0.3:
        return asked | {"do": "group delete"}, kept.with_group(group, None), group
    joining = [one for one in TERMINALS if one not in before]
    leaving = [one for one in some if one in before]
    if leaving:
        asked |= {"do": "group remove", "members": leaving}
        return asked, kept.with_group(group, before.difference(leaving)), ""
    asked |= {"do": "group add", "members": joining}
    return asked, kept.with_group(group, before.union(joining)), ""


def _line(word: str, named: list[tuple[str, bool]]) -> str:
    entries = ",".join(f"{name};uses=1" if counted else name for name, counted in named)
    return f"{word} {entries}"


#: Without a pidfile, which a kill may leave empty: twistd would not start beside it.
_BROKER: Final = (
    *(*TWISTD, "-n", "--pidfile=", "broker"),
    *(f"--listen={LOOPBACK}", "--udp=0:127.0.0.1", "--auth=password", "--store=sqlite:broker.db"),
)


def _port(whose: str) -> int:
    return 2000 + TERMINALS.index(whose)


def _entries(answer: Message) -> Entries:
    entries = []
    for line in answer.edits("Accept"):
        rest = line.partition(" ")[2]
        for told in rest.split(",") if rest else ():
            name, limit, _ = told.partition(";uses=1")
            entries.append((name, bool(limit)))
    return frozenset(entries)
