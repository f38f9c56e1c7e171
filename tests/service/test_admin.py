"""The operator's socket: who may use it, what it understands, and what it costs."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.logger import capturedLogs, formatEvent

from broker.interfaces import StoreFailed
from broker.mediator.admin import AdminApi, Row, Tell
from broker.service import admin_socket as admin
from broker.service.admin_requests import ACTS
from broker.service.admin_socket import (
    CONNECTIONS_MOST,
    IDLE_SECONDS,
    AdminSocket,
    parse_admin,
)
from broker.service.errors import CannotStart
from tests.support.clock import advance, turn
from tests.support.reactor import FakeReactor
from tests.support.server import a_mediator
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
    """A socket in memory, to an operator that does as the test says unless another is given.

    :ivar user: who connects
    """

    def __init__(self, operator: Any = None) -> None:
        self.reactor = FakeReactor()
        self.user = OWN
        self.acts = Acts()
        self.socket = AdminSocket(self.reactor, "/nowhere/admin", user_of=lambda _: self.user)
        does: Any = operator or self.acts
        self.socket.open(does)

    def connect(self) -> Client:
        """A command connects."""
        (_, factory, *_) = self.reactor.unixServers[0]
        return connect(factory, self.reactor)

    def clogged(self) -> Client:
        """A client that has asked for a long answer, and reads nothing of it."""
        self.acts.rows = 50_000
        client = self.connect()
        client.transport.stop_reading_peer()
        client.type(LIST)
        return client

    def serves(self) -> bool:
        """Whether a new client is answered."""
        return asked(self.connect(), do="account list") == NO_ROWS


@pytest.fixture
def desk() -> Desk:
    """A socket to an operator that does as the test says."""
    return Desk()


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
NO_ROWS: list[Row] = [{"done": True, "accounts": 0}]


class SettingTests:
    """``--admin``."""

    def test_good(self) -> None:
        """A path is made whole, so that it stays the same wherever the process goes."""
        paths = ("broker.admin", "/run/broker/a:b", "/" + "x" * 106)
        assert [parse_admin(f"unix:{path}") for path in paths] == list(map(os.path.abspath, paths))
        assert parse_admin("none") is None

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
        assert asked(client, do="account list") == NO_ROWS
        assert asked(client, do="group list") == [{"done": True, "groups": 0}]

    def test_refused(self, real: Desk) -> None:
        """What can't be is refused in words for the operator."""
        client = real.connect()
        add = {"do": "account add", "identifier": "Ia", "password": " "}
        for request, why in (
            ({"do": "account remove", "identifier": "Ia"}, "there is no account Ia"),
            ({"do": "group delete", "group": "@f"}, "there is no group @f"),
            (add, None),
        ):
            (answer,) = asked(client, **request)
            assert (answer["kind"], why or answer["error"]) == ("refused", answer["error"])

    def test_failures(self, desk: Desk) -> None:
        """What the store can't keep now may be tried again. An error of the broker's own is logged
        and told without detail; it goes on (I24).
        """
        client = desk.connect()
        desk.acts.raises = StoreFailed("the server has no space left")
        client.type(ADD)
        assert answers(client) == [{"error": "the server has no space left", "kind": "busy"}]
        desk.acts.raises = KeyError("inside")
        with capturedLogs() as events:
            client.type(ADD)
        (answer,) = answers(client)
        assert answer["kind"] == "failed"
        assert "inside" not in str(answer)
        assert any("log_failure" in event for event in events)
        assert asked(client, do="account list") == NO_ROWS

    def test_one_at_a_time(self, desk: Desk) -> None:
        """Requests that come together are served one after another, and answered in order."""
        client = desk.connect()
        client.type(ADD + LIST)
        assert len(desk.acts.waiting) == 1
        assert answers(client) == []
        desk.acts.waiting[0].callback(None)
        assert answers(client) == [{"done": True}, *NO_ROWS]

    def test_brought_to_its_end(self, desk: Desk) -> None:
        """A request that has begun is completed, although the client has gone (I9)."""
        client = desk.connect()
        client.type(ADD)
        client.vanish()
        desk.acts.waiting[0].callback(None)
        assert desk.acts.done == ["Ia"]
        assert len(desk.socket.idle) == 0

    def test_through_a_pipe(self, desk: Desk) -> None:
        """Who ends the input is still answered; then the connection is closed."""
        client = desk.connect()
        client.feed(LIST.encode())
        client.end_input()
        assert answers(client) == NO_ROWS
        assert client.closed


class LogTests:
    """Each act is a line of the log."""

    def test_acts(self, real: Desk) -> None:
        """The user, the request and its outcome; never a password, in no field (I18). Names make
        no line, escape or flood of their own there (I19).
        """
        ia: Row = {"identifier": "Ia"}
        add = {"do": "account add", **ia, "password": SECRET}
        members = [f"I\u3000{n}" for n in range(50)]
        shown = " ".join(members[:10])
        script: list[tuple[Row, str]] = [
            (add, "account add Ia: done"),
            (add, "account add Ia: refused: there is already an account Ia"),
            ({**add, "more": 1}, "a request: bad: account add: 'more' has no place there"),
            ({"do": "account name add", **ia, "name": "taro"}, "account name add Ia taro: done"),
            (
                {"do": "group create", "group": "@f", "members": ["Ia", "Ic"]},
                "group create @f Ia Ic: done",
            ),
            ({"do": "who knows", **ia, "most": 5}, "who knows Ia 5: done"),
            (
                {"do": "account burn", "password": SECRET},
                "a request: bad: 'account burn' is nothing that this broker does",
            ),
            (
                {"do": "group create", "group": "@g", "members": members},
                f"group create @g {shown} and 40 more: done",
            ),
            ({"do": "permit show", "identifier": "a\u2003b"}, r"permit show a\u2003b: done"),
        ]
        client = real.connect()
        with capturedLogs() as events:
            for request, _ in script:
                asked(client, **request)
        lines = [formatEvent(event) for event in events if "Operator" in formatEvent(event)]
        assert lines == [f"Operator (user {OWN}): {line}" for _, line in script]
        assert SECRET not in repr(events)


class UserTests:
    """Who may ask."""

    @pytest.mark.parametrize("user", [0, OWN, OWN + 4711])
    def test_who(self, desk: Desk, user: int) -> None:
        """The user that the broker runs as, and root. Another is told so and sent away, and
        nothing that it sends is read (I5).
        """
        desk.user = user
        client = desk.connect()
        client.type(ADD)
        if user in (0, OWN):
            assert len(desk.acts.waiting) == 1
        else:
            (answer,) = answers(client)
            assert (answer["kind"], client.closed) == ("refused", True)
            assert desk.acts.waiting == []


class BoundTests:
    """What a command may cost (I15)."""

    def test_connections(self, desk: Desk) -> None:
        """Above the limit, a client is told to try again, and can when another has gone."""
        clients = [desk.connect() for _ in range(CONNECTIONS_MOST)]
        extra = desk.connect()
        (answer,) = answers(extra)
        assert (answer["kind"], extra.closed) == ("busy", True)
        clients.pop().vanish()
        assert desk.serves()

    def test_length(self, desk: Desk) -> None:
        """A request of a mebibyte is read; a longer one is refused."""
        client = desk.connect()
        client.send(LIST.rstrip().encode().ljust(admin.LINE_BYTES) + b"\n")
        assert answers(client) == NO_ROWS
        client.send(b" " * (admin.LINE_BYTES + 1))
        why = "a request has at most 1048576 bytes"
        assert answers(client) == [{"error": why, "kind": "bad"}]
        assert client.closed

    def test_idle(self, desk: Desk) -> None:
        """Who asks nothing is sent away, also after an answer; not who waits for the broker."""
        silent, client, waits = (desk.connect() for _ in range(3))
        waits.type(ADD)
        advance(desk.reactor, IDLE_SECONDS - 1)
        asked(client, do="account list")
        advance(desk.reactor, 2)
        assert (silent.closed, client.closed) == (True, False)
        advance(desk.reactor, IDLE_SECONDS)
        assert client.closed
        desk.acts.waiting[0].callback(None)
        assert answers(waits) == [{"done": True}]

    def test_long_answer(self, desk: Desk) -> None:
        """An answer is made only as fast as it is read, and is complete in the end."""
        clogged = desk.clogged()
        room = clogged.transport.bufferSize + 2 * admin.BATCH_BYTES
        assert len(clogged.transport.unread) <= room
        assert desk.acts.told < 10_000
        clogged.transport.resume_reading_peer()
        rows = answers(clogged)
        assert (len(rows), rows[-1]) == (50_001, {"done": True, "accounts": 50_000})

    def test_not_all_in_one_turn(self, desk: Desk) -> None:
        """Between two pieces of an answer all others have their turn (I24)."""
        desk.acts.rows = 50_000
        client = desk.connect()
        client.feed(LIST.encode())
        for turns in range(1, 10):
            assert desk.acts.told * 20 < turns * 2 * admin.BATCH_BYTES
            turn(desk.reactor)
        assert desk.acts.told > 1000

    @pytest.mark.parametrize("vanishes", [False, True])
    def test_never_read(self, desk: Desk, vanishes: bool) -> None:
        """A client that reads nothing of it is sent away; the rest is not made, nor is it if the
        client goes away.
        """
        clogged = desk.clogged()
        made = desk.acts.told
        if vanishes:
            clogged.vanish()
        else:
            advance(desk.reactor, IDLE_SECONDS + 1)
            assert clogged.closed
        assert desk.acts.told == made
        assert (desk.socket.connections, len(desk.socket.idle)) == (set(), 0)


class UmaskReactor(FakeReactor):
    """A reactor that looks how private what is made at the moment would be."""

    umask = 0

    def listenUNIX(
        self, address: Any, factory: Any, backlog: int = 50, mode: int = 0o666, wantPID: Any = 0
    ) -> Any:
        self.umask = os.umask(0o777)
        os.umask(self.umask)
        return super().listenUNIX(address, factory, backlog, mode, wantPID)  # type: ignore[no-untyped-call]


def open_at(path: str, reactor: FakeReactor | None = None) -> None:
    """Open a socket at a path."""
    operator: Any = None
    AdminSocket(reactor or FakeReactor(), path).open(operator)


class OpenTests:
    """Opening it and closing it."""

    def test_private_from_the_start(self) -> None:
        """It is the owner's alone from the moment that it is there, not only soon after."""
        reactor = UmaskReactor()
        before = os.umask(0o022)
        try:
            open_at("/nowhere/admin", reactor)
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
            open_at("/nowhere/admin", Refusing())

    def test_closed(self, desk: Desk) -> None:
        """Closed, it has no connection and no timer; a request that has begun is completed."""
        clients = [desk.clogged(), desk.connect(), desk.connect()]
        clients[-1].type(ADD)
        desk.socket.close()
        assert all(client.closed for client in clients)
        desk.acts.waiting[0].callback(None)
        assert desk.acts.done == ["Ia"]
        assert desk.reactor.getDelayedCalls() == []


@pytest.mark.integration
class InTheWayTests:
    """What is there already where it shall be; what a killed broker has left: test_operator."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> str:
        """Where it shall be."""
        return str(tmp_path / "admin")

    def test_living(self, path: str) -> None:
        """One that a process listens on is left alone, however busy that process is."""
        with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as first:
            other.bind(path)
            other.listen(0)
            for _ in range(2):
                with pytest.raises(CannotStart, match="another broker has it open"):
                    open_at(path)
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
            open_at(path)
        assert os.path.islink(path) == (target != path)
        assert os.path.lexists(target)
