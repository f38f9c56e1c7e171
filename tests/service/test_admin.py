"""The operator's socket: who may use it, what it understands, and what it costs."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.logger import capturedLogs, formatEvent

from broker.interfaces import StoreFailed
from broker.mediator.admin import AdminApi, Row, Tell
from broker.service import admin_socket as admin
from broker.service import mediator
from broker.service.admin_requests import ACTS
from broker.service.admin_socket import (
    CONNECTIONS_MOST,
    IDLE_SECONDS,
    AdminSocket,
    parse_admin,
)
from broker.service.errors import CannotStart
from broker.store.memory import MemoryStore
from tests.support.clock import advance, turn
from tests.support.reactor import FakeReactor
from tests.support.server import a_mediator, cheap_passwords
from tests.support.transport import Client, connect

OWN = os.geteuid()
SECRET = "correct horse"


class Acts:
    """An operator whose acts do as a test says.

    :ivar rows: how many rows each list has
    :ivar told: how many of them were told
    :ivar waiting: what the acts that wait are waiting for
    :ivar raises: what an act raises
    :ivar done: the acts that were brought to their end
    """

    def __init__(self) -> None:
        self.rows = 0
        self.told = 0
        self.waiting: list[Deferred[None]] = []
        self.raises: Exception | None = None
        self.done: list[str] = []

    async def add_account(self, identifier: str, password: str) -> Row:
        """Wait until the test says that it is done."""
        if self.raises is not None:
            raise self.raises
        self.waiting.append(Deferred())
        await self.waiting[-1]
        self.done.append(identifier)
        return {}

    async def list_accounts(self, tell: Tell) -> Row:
        """The number of rows that the test wants."""
        for number in range(self.rows):
            await tell({"identifier": f"terminal-{number}"})
            self.told += 1
        return {"accounts": self.rows}


class Desk:
    """A socket in memory.

    :ivar user: who connects
    """

    def __init__(self, operator: Any) -> None:
        self.reactor = FakeReactor()
        self.user = OWN
        self.socket = AdminSocket(self.reactor, "/nowhere/admin", user_of=lambda _: self.user)
        self.socket.open(operator)

    def connect(self) -> Client:
        """A command connects."""
        (_, factory, *_) = self.reactor.unixServers[0]
        return connect(factory, self.reactor)


@pytest.fixture
def acts() -> Acts:
    """An operator that does as the test says."""
    return Acts()


@pytest.fixture
def desk(acts: Acts) -> Desk:
    """A socket to it."""
    return Desk(acts)


@pytest.fixture
def clogged(desk: Desk, acts: Acts) -> Client:
    """A client that has asked for a long answer, and reads nothing of it."""
    acts.rows = 50_000
    client = desk.connect()
    client.transport.stop_reading_peer()
    client.type(LIST)
    return client


@pytest.fixture
def real() -> Desk:
    """A socket to the operator of a mediator in full."""
    broker = a_mediator(clock=FakeReactor())
    return Desk(AdminApi(broker.mediator.context, broker.mediator.accounts))


def answers(client: Client) -> list[Row]:
    """The lines that came."""
    return [json.loads(line) for line in client.text().splitlines()]


def asked(client: Client, **request: Any) -> list[Row]:
    """What a request is answered at once."""
    client.type(json.dumps(request) + "\n")
    return answers(client)


ADD = '{"do": "account add", "identifier": "Ia", "password": "x"}\n'
LIST = '{"do": "account list"}\n'


class SettingTests:
    """``--admin``."""

    def test_good(self) -> None:
        """A path is made whole, so that it stays the same wherever the process goes."""
        assert parse_admin("unix:broker.admin") == os.path.abspath("broker.admin")
        assert parse_admin("unix:/run/broker/a:b") == "/run/broker/a:b"
        assert parse_admin("none") is None
        assert parse_admin("unix:/" + "x" * 106) is not None

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("tcp:1201", "only unix:PATH or none"),
            ("broker.admin", "only unix:PATH or none"),
            ("unix:", "only unix:PATH or none"),
            ("unix:a\0b", "only unix:PATH or none"),
            ("unix:/" + "x" * 107, "at most 107 bytes"),
            ("unix:/" + "山" * 36, "at most 107 bytes"),
        ],
    )
    def test_wrong(self, text: str, why: str) -> None:
        """What is no path of a socket is told so, before anything starts."""
        with pytest.raises(ValueError, match=why):
            parse_admin(text)


class RequestTests:
    """What is asked, and how it is answered."""

    def test_every_act(self, real: Desk) -> None:
        """Each act is done and answered; what lists something tells rows first."""
        client = real.connect()
        ia: Row = {"identifier": "Ia"}
        script: list[tuple[Row, list[Row]]] = [
            ({"do": "account add", **ia, "password": SECRET}, [{}]),
            ({"do": "account reset", **ia, "password": SECRET}, [{}]),
            ({"do": "account name add", **ia, "name": "taro"}, [{}]),
            ({"do": "account name remove", **ia, "name": "taro"}, [{}]),
            (
                {"do": "account list"},
                [
                    {**ia, "names": [], "groups": [], "connections": 0, "reached": False},
                    {"accounts": 1},
                ],
            ),
            ({"do": "group create", "group": "@f", "members": ["Ia"]}, [{"members": 1}]),
            ({"do": "group add", "group": "@f", "members": ["Ic", "山"]}, [{"members": 3}]),
            ({"do": "group remove", "group": "@f", "members": ["Ic"]}, [{"members": 2}]),
            ({"do": "group list"}, [{"group": "@f", "members": 2}, {"groups": 1}]),
            (
                {"do": "group members", "group": "@f"},
                [ia, {"identifier": "山"}, {"members": 2}],
            ),
            ({"do": "permit show", **ia}, [{**ia, "entries": 0}]),
            ({"do": "who knows", **ia}, [{**ia, "told": 0}]),
            ({"do": "who knows", **ia, "since": 5, "most": 1}, [{**ia, "told": 0}]),
            ({"do": "group delete", "group": "@f"}, [{"members": 2, "lists": 0}]),
            ({"do": "account remove", **ia}, [{"lists": 0, "groups": 0}]),
        ]
        for request, (*rows, end) in script:
            assert asked(client, **request) == [*rows, {"done": True, **end}]
        assert {request["do"] for request, _ in script} == set(ACTS)

    @pytest.mark.parametrize(
        ("line", "why"),
        [
            (b"", "no JSON"),
            (b"account list", "no JSON"),
            (b'{"do": "account list"', "no JSON"),
            (b"\xff", "no JSON"),
            (b"[" * 100_000, "no JSON"),
            (b"[]", "no object"),
            (b"{}", "nothing that this broker does"),
            (b'{"do": ["account list"]}', "nothing that this broker does"),
            (b'{"do": "account burn"}', "'account burn' is nothing"),
            (b'{"do": "x\\u001b\\u2028"}', r"'x\x1b\u2028' is nothing"),
            (b'{"do": "account list", "all": 1}', "'all' has no place"),
            (b'{"do": "account remove"}', "'identifier' is missing"),
            (b'{"do": "account remove", "identifier": 7}', "identifier: must be a text"),
            (b'{"do": "account remove", "identifier": ""}', "identifier: an identifier is empty"),
            (b'{"do": "account remove", "identifier": "@f"}', "begins with @"),
            (b'{"do": "account remove", "identifier": "\\ud800"}', "cannot be seen"),
            (b'{"do": "account add", "identifier": "Ix", "password": null}', "must be a text"),
            (b'{"do": "group create", "group": "f", "members": []}', "begins with @"),
            (b'{"do": "group create", "group": "@f", "members": "Ia"}', "must be a list"),
            (b'{"do": "group create", "group": "@f", "members": ["Ia", 1]}', "must be a text"),
            (b'{"do": "group create", "group": "@f"}', "'members' is missing"),
            (b'{"do": "who knows", "identifier": "Ia", "most": 0}', "from 1 to"),
            (b'{"do": "who knows", "identifier": "Ia", "most": true}', "from 1 to"),
            (b'{"do": "who knows", "identifier": "Ia", "since": 1.5}', "from 0 to"),
            (b'{"do": "who knows", "identifier": "Ia", "since": null}', "from 0 to"),
        ],
    )
    def test_bad(self, real: Desk, line: bytes, why: str) -> None:
        """What is no request is told so, changes nothing, and the next one is served (I5, I24)."""
        client = real.connect()
        client.send(line + b"\n")
        (answer,) = answers(client)
        assert answer["kind"] == "bad"
        assert why in str(answer["error"])
        assert asked(client, do="account list") == [{"done": True, "accounts": 0}]
        assert asked(client, do="group list") == [{"done": True, "groups": 0}]

    def test_refused(self, real: Desk) -> None:
        """What can't be is refused in words for the operator."""
        client = real.connect()
        (answer,) = asked(client, do="account remove", identifier="Ia")
        assert answer == {"error": "there is no account Ia", "kind": "refused"}
        (answer,) = asked(client, do="account add", identifier="Ia", password=" ")
        assert answer["kind"] == "refused"
        (answer,) = asked(client, do="group delete", group="@f")
        assert answer == {"error": "there is no group @f", "kind": "refused"}

    def test_not_kept(self, desk: Desk, acts: Acts) -> None:
        """What the store can't keep now may be tried again."""
        acts.raises = StoreFailed("the server has no space left")
        client = desk.connect()
        client.type(ADD)
        assert answers(client) == [{"error": "the server has no space left", "kind": "busy"}]

    def test_an_error_of_ours(self, desk: Desk, acts: Acts) -> None:
        """An error of the broker's own is logged and told without detail; it goes on (I24)."""
        acts.raises = KeyError("inside")
        client = desk.connect()
        with capturedLogs() as events:
            client.type(ADD)
        (answer,) = answers(client)
        assert answer["kind"] == "failed"
        assert "inside" not in str(answer)
        assert any("log_failure" in event for event in events)
        assert asked(client, do="account list") == [{"done": True, "accounts": 0}]

    def test_one_at_a_time(self, desk: Desk, acts: Acts) -> None:
        """Requests that come together are served one after another, and answered in order."""
        client = desk.connect()
        client.type(ADD + LIST)
        assert len(acts.waiting) == 1
        assert answers(client) == []
        acts.waiting[0].callback(None)
        assert answers(client) == [{"done": True}, {"done": True, "accounts": 0}]

    def test_brought_to_its_end(self, desk: Desk, acts: Acts) -> None:
        """A request that has begun is completed, although the client has gone (I9)."""
        client = desk.connect()
        client.type(ADD)
        client.vanish()
        acts.waiting[0].callback(None)
        assert acts.done == ["Ia"]
        assert len(desk.socket.idle) == 0

    def test_through_a_pipe(self, desk: Desk) -> None:
        """Who ends the input is still answered; then the connection is closed."""
        client = desk.connect()
        client.feed(LIST.encode())
        client.end_input()
        assert answers(client) == [{"done": True, "accounts": 0}]
        assert client.closed


class LogTests:
    """Each act is a line of the log."""

    def lines(self, desk: Desk, *requests: str) -> list[str]:
        """What is logged of some requests."""
        client = desk.connect()
        with capturedLogs() as events:
            for request in requests:
                client.type(request)
        return [formatEvent(event) for event in events if "Operator" in formatEvent(event)]

    def test_acts(self, real: Desk) -> None:
        """The user, the request and its outcome; never a password (I18)."""
        ia = '"identifier": "Ia"'
        lines = self.lines(
            real,
            f'{{"do": "account add", {ia}, "password": "{SECRET}"}}\n',
            f'{{"do": "account add", {ia}, "password": "{SECRET}"}}\n',
            f'{{"do": "account name add", {ia}, "name": "taro"}}\n',
            '{"do": "group create", "group": "@f", "members": ["Ia", "Ic"]}\n',
            f'{{"do": "who knows", {ia}, "most": 5}}\n',
            f'{{"do": "account burn", "password": "{SECRET}"}}\n',
        )
        assert lines == [
            f"Operator (user {OWN}): account add Ia: done",
            f"Operator (user {OWN}): account add Ia: refused: there is already an account Ia",
            f"Operator (user {OWN}): account name add Ia taro: done",
            f"Operator (user {OWN}): group create @f Ia Ic: done",
            f"Operator (user {OWN}): who knows Ia 5: done",
            f"Operator (user {OWN}): a request: bad: 'account burn' is nothing that this broker"
            " does",
        ]

    def test_nothing_secret(self, real: Desk) -> None:
        """No event of an act holds the password, in any field (I18)."""
        client = real.connect()
        with capturedLogs() as events:
            request = {"do": "account add", "identifier": "Ia", "password": SECRET}
            asked(client, **request)
            asked(client, **request, more=1)
        assert events
        assert SECRET not in repr(events)

    def test_one_line(self, real: Desk) -> None:
        """Names make no line, escape or flood of their own there (I19)."""
        members = json.dumps([f"I\u3000{n}" for n in range(50)])
        (long, odd) = self.lines(
            real,
            f'{{"do": "group create", "group": "@f", "members": {members}}}\n',
            '{"do": "permit show", "identifier": "a\u2003b"}\n',
        )
        assert long.endswith("I\u30009 and 40 more: done")
        assert "\\u2003" in odd


class UserTests:
    """Who may ask."""

    @pytest.mark.parametrize("user", [0, OWN])
    def test_let_in(self, desk: Desk, user: int) -> None:
        """The user that the broker runs as, and root."""
        desk.user = user
        assert asked(desk.connect(), do="account list") == [{"done": True, "accounts": 0}]

    def test_refused(self, desk: Desk, acts: Acts) -> None:
        """Anybody else is told so and sent away, and nothing of theirs is read (I5)."""
        desk.user = OWN + 4711
        client = desk.connect()
        client.type(ADD)
        (answer,) = answers(client)
        assert answer["kind"] == "refused"
        assert client.closed
        assert acts.waiting == []


class BoundTests:
    """What a command may cost (I15)."""

    def test_connections(self, desk: Desk) -> None:
        """Above the limit, a client is told to try again, and can when another has gone."""
        clients = [desk.connect() for _ in range(CONNECTIONS_MOST)]
        extra = desk.connect()
        (answer,) = answers(extra)
        assert answer["kind"] == "busy"
        assert extra.closed
        clients.pop().vanish()
        assert asked(desk.connect(), do="account list") == [{"done": True, "accounts": 0}]

    def test_length(self, desk: Desk) -> None:
        """A request of a mebibyte is read; a longer one is refused."""
        client = desk.connect()
        request = LIST.rstrip().encode()
        client.send(request + b" " * (admin.LINE_BYTES - len(request)) + b"\n")
        assert answers(client) == [{"done": True, "accounts": 0}]
        client.send(b" " * (admin.LINE_BYTES + 1))
        (answer,) = answers(client)
        assert answer == {"error": "a request has at most 1048576 bytes", "kind": "bad"}
        assert client.closed

    def test_idle(self, desk: Desk) -> None:
        """Who asks nothing is sent away, also after an answer."""
        silent, client = desk.connect(), desk.connect()
        advance(desk.reactor, IDLE_SECONDS - 1)
        asked(client, do="account list")
        advance(desk.reactor, 2)
        assert silent.closed
        assert not client.closed
        advance(desk.reactor, IDLE_SECONDS)
        assert client.closed

    def test_not_idle_while_served(self, desk: Desk, acts: Acts) -> None:
        """Who waits for the broker is not sent away for that."""
        client = desk.connect()
        client.type(ADD)
        advance(desk.reactor, 2 * IDLE_SECONDS)
        acts.waiting[0].callback(None)
        assert answers(client) == [{"done": True}]

    def test_long_answer(self, clogged: Client, acts: Acts) -> None:
        """An answer is made only as fast as it is read, and is complete in the end."""
        room = clogged.transport.bufferSize + 2 * admin.BATCH_BYTES
        assert len(clogged.transport.unread) <= room
        assert acts.told < 10_000
        clogged.transport.resume_reading_peer()
        rows = answers(clogged)
        assert len(rows) == 50_001
        assert rows[-1] == {"done": True, "accounts": 50_000}

    def test_not_all_in_one_turn(self, desk: Desk, acts: Acts) -> None:
        """Between two pieces of an answer all others have their turn (I24)."""
        acts.rows = 50_000
        client = desk.connect()
        client.feed(LIST.encode())
        for turns in range(1, 10):
            assert acts.told * 20 < turns * 2 * admin.BATCH_BYTES
            turn(desk.reactor)
        assert acts.told > 1000

    def test_never_read(self, desk: Desk, clogged: Client, acts: Acts) -> None:
        """A client that reads nothing of it is sent away, and the rest is not made."""
        made = acts.told
        advance(desk.reactor, IDLE_SECONDS + 1)
        assert clogged.closed
        assert acts.told == made
        assert desk.socket.connections == set()

    def test_gone_amid_an_answer(self, desk: Desk, clogged: Client, acts: Acts) -> None:
        """The rest is not made either if the client goes away."""
        made = acts.told
        clogged.vanish()
        assert acts.told == made
        assert len(desk.socket.idle) == 0


class UmaskReactor(FakeReactor):
    """A reactor that looks how private what is made at the moment would be."""

    umask = 0

    def listenUNIX(
        self, address: Any, factory: Any, backlog: int = 50, mode: int = 0o666, wantPID: Any = 0
    ) -> Any:
        self.umask = os.umask(0o777)
        os.umask(self.umask)
        return super().listenUNIX(address, factory, backlog, mode, wantPID)  # type: ignore[no-untyped-call]


class OpenTests:
    """Opening it and closing it."""

    def test_private_from_the_start(self) -> None:
        """It is the owner's alone from the moment that it is there, not only soon after."""
        reactor = UmaskReactor()
        before = os.umask(0o022)
        try:
            AdminSocket(reactor, "/nowhere/admin").open(Any)  # type: ignore[arg-type]
            assert os.umask(0o022) == 0o022
        finally:
            os.umask(before)
        assert reactor.umask == 0o177
        ((path, _, backlog, mode, _),) = reactor.unixServers
        assert (path, backlog, mode) == ("/nowhere/admin", CONNECTIONS_MOST, 0o600)

    def test_cannot_be_opened(self) -> None:
        """Where it can't be opened, a line says which and why."""

        class Refusing(FakeReactor):
            def listenUNIX(self, address: Any, *_: Any, **__: Any) -> Any:
                raise CannotListenError(None, address, PermissionError(13, "Permission denied"))

        expected = r"\Acannot listen on unix:/nowhere/admin: Permission denied\Z"
        with pytest.raises(CannotStart, match=expected):
            AdminSocket(Refusing(), "/nowhere/admin").open(Any)  # type: ignore[arg-type]

    def test_closed(self, desk: Desk, clogged: Client, acts: Acts) -> None:
        """Closed, it has no connection and no timer; a request that has begun is completed."""
        idle, busy = desk.connect(), desk.connect()
        busy.type(ADD)
        desk.socket.close()
        assert idle.closed
        assert busy.closed
        assert clogged.closed
        acts.waiting[0].callback(None)
        assert acts.done == ["Ia"]
        assert desk.reactor.getDelayedCalls() == []

    def test_of_a_role(self) -> None:
        """The mediator's role opens one where it is told, and none where it is told so."""
        for arguments, paths in ((["--admin=unix:/nowhere/x"], ["/nowhere/x"]), ([], None)):
            reactor = FakeReactor()
            options: Any = mediator.Options()
            usual = ["--store=memory:", "--udp=none"]
            options.parseOptions([*usual, *(arguments or ["--admin=none"])])
            store = MemoryStore(lambda count: b"r" * count)
            service = mediator.MediatorService(reactor, options, store, passwords=cheap_passwords())
            service.privilegedStartService()
            assert [path for path, *_ in reactor.unixServers] == (paths or [])
            service.stopService()


@pytest.mark.integration
class InTheWayTests:
    """What is there already where it shall be."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> str:
        """Where it shall be."""
        return str(tmp_path / "admin")

    @pytest.fixture
    def other(self, path: str) -> Iterator[socket.socket]:
        """A socket that is there."""
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path)
            yield bound

    def open(self, path: str) -> FakeReactor:
        """Open ours there."""
        reactor = FakeReactor()
        AdminSocket(reactor, path).open(Any)  # type: ignore[arg-type]
        return reactor

    def test_dead(self, path: str, other: socket.socket) -> None:
        """A socket that no process listens on is removed."""
        other.close()
        assert stat.S_ISSOCK(os.stat(path).st_mode)
        assert len(self.open(path).unixServers) == 1
        assert not os.path.lexists(path)

    def test_living(self, path: str, other: socket.socket) -> None:
        """One that a process listens on is left alone, however busy that process is."""
        other.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            for _ in range(2):
                with pytest.raises(CannotStart, match="another broker has it open"):
                    self.open(path)
                first.setblocking(False)
                first.connect_ex(path)
        assert os.path.lexists(path)

    @pytest.mark.parametrize("what", ["file", "link to a file", "link to a dead socket"])
    def test_no_socket(self, path: str, what: str) -> None:
        """What is no socket is left alone, a link too, even to a dead broker's socket."""
        target = path + "2" if what.startswith("link") else path
        if what.endswith("socket"):
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(target)
        else:
            Path(target).write_text("precious")
        if target != path:
            os.symlink(target, path)
        with pytest.raises(CannotStart, match="exists, and is no socket"):
            self.open(path)
        assert os.path.islink(path) == (target != path)
        assert os.path.lexists(target)
