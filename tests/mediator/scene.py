"""A mediator with its terminals on a stage: who types what, and what each then reads, exactly.

What is drawn at random stands in an expected text as ``{name}``: ``{password}``, ``{reply}``,
``{key}`` or ``{session}``, in the shape that its field has. The same name is the same value
wherever it stands in one ``Scene`` until ``forget`` is called.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from broker.interfaces import Change, IResolver, IStore, ITrigger, State
from broker.net.connection import PeerConnection
from broker.resolver.locations import LocalResolver
from broker.resolver.udp_registrar import UdpRegistrar
from broker.tables.disclosures import Disclosure
from broker.tables.groups import GroupChange
from broker.tables.locations import Binding, Contact
from broker.tables.permits import PermitChange
from tests.support.clock import settle
from tests.support.reactor import Dial, FakeReactor
from tests.support.server import FakeMediator, a_mediator
from tests.support.transport import Client, connect

DONE: Final = "NOTIFY\nRegistration Completed.\n\n"
ACCEPTED: Final = "NOTIFY\nRequest Accepted.\n\n"
DENIED: Final = "NOTIFY\nPermission Denied.\n\n"
NOT_FOUND: Final = "NOTIFY\nCallee not Found.\n\n"
NOT_CONNECTED: Final = "NOTIFY\nCallee not Connected.\n\n"
BUSY: Final = "NOTIFY\nCallee is Busy.\n\n"
UNAVAILABLE: Final = "NOTIFY\nService Unavailable.\n\n"
TOO_MANY: Final = "NOTIFY\nToo Many Requests.\n\n"
STATUS: Final = "QUERY\nSTATUS\n\n"
CAN: Final = "NOTIFY\nSTATUS Acceptable.\n\n"
CANT: Final = "NOTIFY\nSTATUS Busy.\n\n"
SUPERSEDED: Final = "NOTIFY\nSuperseded.\n\n"
REQUESTED: Final = "NOTIFY\nConnection Requested.\n\n"

T = TypeVar("T")

#: Seconds since 1970 at which every scene begins; a whole number, so that times are exact.
TODAY: Final = 1_800_000_000

_SHAPES: Final = {
    "password": r"[A-Za-z0-9!#$%&*+\-./=?@^_~]{16}",
    "reply": r"[A-Za-z0-9!#$%&*+\-./=?@^_~]{16}",
    "key": r"[0-9a-f]{64}",
    "session": r"[A-Za-z0-9._-]{1,64}",
}
_HOLE: Final = re.compile(r"\{(password|reply|key|session)(\d*)\}")
_SECRET: Final = re.compile(r"^(?:Password|Reply Password|Encrypt Key|Token):(.+)$", re.MULTILINE)

#: Every scene of the test that is running, for the checks that follow each test.
SCENES: Final[list[Scene]] = []


def failed(cause: str) -> str:
    """A registration that was refused, typed without a transaction."""
    return f"NOTIFY\nRegistration Failed.\nCause:{cause}\n\n"


def bad(cause: str) -> str:
    """A message that is none."""
    return f"NOTIFY\nBad Message.\nCause:{cause}\n\n"


def register(who: str, *lines: str) -> str:
    """A ``REGISTER``."""
    return "\n".join(["REGISTER", f"Identifier:{who}", *lines, "", ""])


def query(caller: str, callee: str, *lines: str) -> str:
    """A ``QUERY`` (fig. 5a)."""
    return "\n".join(["QUERY", f"Identifier:{caller}", f"Callee:{callee}", *lines, "", ""])


def permits(*lists: str) -> str:
    """What a ``QUERY`` / ``PERMITS`` is answered."""
    return "\n".join(["NOTIFY", "Accept:" + "\n".join(lists), "", ""])


def to_callee(caller: str, n: str = "") -> str:
    """Fig. 5e, and what follows it."""
    return (
        f"NOTIFY\nCaller ID:{caller}\nPassword:{{password{n}}}\nEncrypt Key:{{key{n}}}\n"
        f"Session:{{session{n}}}\nExpires:3600\nReply Password:{{reply{n}}}\n\n"
    )


def to_caller(
    callee: str, host: str = "127.0.0.1", port: int = 1203, n: str = "", transaction: str = ""
) -> str:
    """Fig. 5d, and what follows it."""
    return (
        f"NOTIFY\nCallee Address:{host}\nPassword:{{password{n}}}\nEncrypt Key:{{key{n}}}\n"
        f"Callee Port:{port}\nCallee:{callee}\nSession:{{session{n}}}\nExpires:3600\n"
        f"Reply Password:{{reply{n}}}\n"
        + (f"Transaction:{transaction}\nCode:200\n" if transaction else "")
        + "\n"
    )


def terminate(n: str = "", how: str = "") -> str:
    """A session is void; how it has ended, by its callee's word."""
    end = f"End:{how}\n" if how else ""
    return f"NOTIFY\nSession:{{session{n}}}\n{end}Terminate.\n\n"


def begin(session: str) -> str:
    """The callee says that the caller came."""
    return f"NOTIFY\nSession:{session}\nBegin.\n\n"


def end(session: str, how: str = "Completed") -> str:
    """A side says that a session is over."""
    return f"NOTIFY\nSession:{session}\nEnd:{how}\n\n"


def identifier(name: str) -> str:
    """Whose connection it is, by its name: ``b`` and ``b2`` are both of ``Ib``."""
    return f"I{name[0]}"


class Scene:
    """Terminals by name around one mediator.

    :ivar drawn: the values of ``{name}`` so far
    :ivar sent: each message of the mediator, as (terminal, its statement or first field), in the
        order in which they were sent, to any terminal
    :ivar secrets: every password and key that any terminal has read
    """

    def __init__(self, **options: Any) -> None:
        self.sent: list[tuple[str, str]] = []
        self.secrets: set[str] = set()
        self.drawn: dict[str, str] = {}
        self.clients: dict[str, Client] = {}
        hub = {"trace": self._traced, **options.pop("hub", {})}
        clock = options.setdefault("clock", FakeReactor())
        options.setdefault("wall", lambda: TODAY + clock.seconds())
        self.broker: FakeMediator = a_mediator(hub=hub, **options)
        self.mediator = self.broker.mediator
        self.context = self.mediator.context
        self.clock: FakeReactor = self.broker.clock
        SCENES.append(self)

    def _traced(self, stream: PeerConnection, way: str, message: Any) -> None:
        if way == ">":
            for name, client in self.clients.items():
                if client.protocol is stream:
                    first = message.statement or next(iter(message.fields))
                    self.sent.append((name, first))

    # Who is there.

    def connect(self, *names: str, host: str = "127.0.0.1", arrives_at: str = "127.0.0.1") -> None:
        """Terminals connect from ``host``, and say nothing yet."""
        for name in names:
            assert name not in self.clients
            client = connect(self.broker.factory, self.clock, peer_host=host, host=arrives_at)
            self.clients[name] = client

    def on_line(self, name: str, *lines: str, port: int = 1203, host: str = "127.0.0.1") -> None:
        """A terminal registers its address, over the connection of that name."""
        if name not in self.clients:
            self.connect(name, host=host)
        self.registers(name, f"Address:{host}", f"Port:{port}", *lines)

    def registers(self, name: str, *lines: str, **reads: str) -> None:
        """A terminal registers these lines, over a connection that is there."""
        self.says(name, register(identifier(name), *lines), **{name: DONE, **reads})

    def asks(self, *lines: str, caller: str = "a", callee: str = "b") -> None:
        """A terminal calls, and the callee is asked for its status."""
        asked = query(identifier(caller), identifier(callee), *lines)
        self.says(caller, asked, **{callee: STATUS})

    def grants(self, callee: str = "b", caller: str = "a", n: str = "", port: int = 1203) -> None:
        """A callee answers that it can take the call, and both read the grant.

        :param n: as in ``{session1}``, where there are several calls in one scene
        """
        granted = ACCEPTED + to_caller(identifier(callee), port=port, n=n)
        self.says(callee, CAN, **{callee: to_callee(identifier(caller), n), caller: granted})

    def calls(self, caller: str, callee: str, n: str = "", port: int = 1203) -> str:
        """A call between two connections' terminals; give its session."""
        self.asks(caller=caller, callee=callee)
        self.grants(callee, caller, n, port)
        return self.drawn[f"session{n}"]

    # What happens, and what each terminal reads; one that is not named reads nothing.

    def says(self, who: str, text: str, **reads: str) -> None:
        """Someone types, just as the text is, with what was drawn in place of its name."""
        self.clients[who].type(_HOLE.sub(lambda hole: self.drawn[hole[1] + hole[2]], text))
        self.reads(**reads)

    def new_says(self, who: str, text: str, reads: str, *, host: str = "127.0.0.1") -> None:
        """Someone connects, types, and alone reads something."""
        self.connect(who, host=host)
        self.says(who, text, **{who: reads})

    def passes(self, seconds: float, **reads: str) -> None:
        """Time passes."""
        self.broker.advance(seconds)
        self.reads(**reads)

    def leaves(self, who: str, **reads: str) -> None:
        """Someone's connection is cut."""
        self.clients.pop(who).vanish()
        self.reads(**reads)

    def fires(self, deferred: Deferred[Any], result: Any = None, **reads: str) -> None:
        """What was waited for elsewhere is there, or has failed."""
        if isinstance(result, Exception):
            deferred.errback(result)
        else:
            deferred.callback(result)
        settle(self.clock)
        self.reads(**reads)

    def reads(self, **expected: str) -> None:
        """Each terminal has read this, since it was last looked at."""
        got = {name: self.heard(name) for name in self.clients}
        got = {name: text for name, text in got.items() if text}
        for name, text in expected.items():
            self._match(name, text, got.pop(name, ""))
        assert got == {}, "somebody read what was not for them"

    def heard(self, who: str) -> str:
        """What a terminal has read since that was last looked at."""
        text = self.clients[who].text()
        self.secrets.update(_SECRET.findall(text))
        return text

    def forget(self) -> None:
        """Let the names stand for new values."""
        self.drawn.clear()

    def _match(self, who: str, expected: str, got: str) -> None:
        pattern = ""
        named: set[str] = set()
        rest = 0
        for hole in _HOLE.finditer(expected):
            pattern += re.escape(expected[rest : hole.start()])
            rest = hole.end()
            name = hole[1] + hole[2]
            if name in self.drawn:
                pattern += re.escape(self.drawn[name])
            elif name in named:
                pattern += f"(?P={name})"
            else:
                named.add(name)
                pattern += f"(?P<{name}>{_SHAPES[hole[1]]})"
        pattern += re.escape(expected[rest:])
        match = re.fullmatch(pattern, got)
        assert match is not None, f"{who} read\n{got}\nand not\n{expected}\n{self.drawn}"
        self.drawn.update(match.groupdict())

    # What there is besides what is read.

    @property
    def dials(self) -> list[Dial]:
        """Every dial so far."""
        return self.clock.dials

    def address(self, identifier: str) -> tuple[str, int] | None:
        """Where the resolver in the same process says that a terminal is."""
        resolver: Any = self.broker.resolver
        place = resolver.table.lookup(identifier, self.clock.seconds())
        return None if place is None else (place.contact.host, place.contact.port)

    def kept(self) -> dict[str, Any]:
        """What the mediator keeps of connections and calls, where it keeps anything."""
        parts: list[Any] = [
            self.mediator,
            self.context.connections,
            self.context.reach,
            self.context.sessions,
            self.context.sessions._table,
            self.mediator._registration,
            self.context.permits,
            self.broker.trigger,
        ]
        kept: dict[str, Any] = {}
        for part in parts:
            slots = getattr(type(part), "__slots__", ())
            for name in {*slots, *getattr(part, "__dict__", ())}:
                value = getattr(part, name)
                if name not in _MAY_STAY and hasattr(value, "__len__") and len(value):
                    kept[f"{type(part).__name__}.{name}"] = value
        return kept

    def finish(self) -> None:
        """Everybody leaves and much time passes: nothing stays behind, no timer either (I15)."""
        for name in list(self.clients):
            self.heard(name)
            self.clients.pop(name).vanish()
        for dial in self.dials:
            if not dial.over:
                dial.refuse()
        self.broker.advance(4 * 3600)
        assert self.kept() == {}
        self.context.permits.stop()  # an entry may expire in ten years
        assert self.clock.getDelayedCalls() == []
        assert len(self.broker.hub.sources) == 0


#: What outlives connections by right: counts for the operator, permits, settings, what is served.
_MAY_STAY: Final = frozenset(
    (
        "_accounts",
        "_lists",
        "_permits",
        "_routes",
        "canonical",
        "counts",
        "groups",
        "permits",
        "table",
        "woken",
    )
)


@implementer(IStore)
class SlowStore:
    """A store whose commits are done when the test says so.

    :ivar commits: the changes of each commit asked for, oldest first
    :ivar pending: the commits that are not done yet
    :ivar at_once: commits are done at once
    :ivar told: the disclosures, which are kept at once
    :ivar slow_ledger: commits of disclosures, too, are done when the test says so
    """

    def __init__(self, *permits: PermitChange, groups: Sequence[GroupChange] = ()) -> None:
        self.commits: list[tuple[Change, ...]] = []
        self.pending: list[Deferred[None]] = []
        self.at_once = False
        self.told: list[Disclosure] = []
        self.slow_ledger = False
        self._permits = {change.owner: change for change in permits}
        self._groups = {change.name: change for change in groups}

    async def load(self) -> State:
        """What it was made with, and what has been kept since."""
        return State("epoch-1", list(self._permits.values()), groups=list(self._groups.values()))

    def commit(self, changes: Sequence[Change]) -> Deferred[None]:
        """Wait for the test."""
        told = [change for change in changes if isinstance(change, Disclosure)]
        if told and not self.slow_ledger:
            self.told += told
            return succeed(None)
        if not told:
            self.commits.append(tuple(changes))
        commit: Deferred[None] = Deferred()
        commit.addCallback(lambda _: self._keep(changes))
        if self.at_once:
            commit.callback(None)
        else:
            self.pending.append(commit)
        return commit

    def _keep(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if isinstance(change, PermitChange):
                self._permits[change.owner] = change
            elif isinstance(change, GroupChange):
                self._groups[change.name] = change
            elif isinstance(change, Disclosure):
                self.told.append(change)

    async def disclosures(self, whose: str, before: int, most: int) -> Sequence[Disclosure]:
        """The newest of those that were told."""
        found = [told for told in self.told if told.owner == whose and told.at < before]
        return found[: -most - 1 : -1]

    async def prune(self, before: int) -> int:
        """Nothing is old here."""
        return 0

    async def stop(self) -> None:
        """There is nothing to close."""


@implementer(IResolver)
class SlowResolver(LocalResolver):
    """A resolver inside whose answers may be held, or be errors.

    What is asked is done at once; only the answer takes its time, as over a connection.

    :ivar asked: each question, as (what, identifier)
    :ivar hold: of which questions the answers are held: ``register``, ``withdraw``, ``lookup``
    :ivar held: the answers that are held, oldest first; fire one to let it through
    :ivar errors: what a question is answered instead, without being done
    :ivar lasts: seconds for which what is looked up holds, where not as the table says
    """

    def __init__(self, clock: FakeReactor, registrar: UdpRegistrar | None = None) -> None:
        super().__init__(clock, registrar=registrar)
        self.asked: list[tuple[str, str]] = []
        self.hold: set[str] = set()
        self.held: list[Deferred[None]] = []
        self.errors: dict[str, Exception] = {}
        self.lasts: float | None = None

    async def register(self, identifier: str, contact: Contact) -> None:
        await self._slowly("register", identifier, super().register, contact)

    async def withdraw(self, identifier: str) -> None:
        await self._slowly("withdraw", identifier, super().withdraw)

    async def add_key(
        self, identifier: str, key_id: str, key: bytes, port: int, expires: int
    ) -> None:
        await self._slowly("add_key", identifier, super().add_key, key_id, key, port, expires)

    async def trigger(self, identifier: str) -> bool:
        return await self._slowly("trigger", identifier, super().trigger)

    async def registered_binding(self, identifier: str) -> Binding:
        return await self.lookup(identifier)

    async def lookup(self, identifier: str) -> Binding:
        place = await self._slowly("lookup", identifier, super().lookup)
        if self.lasts is not None:
            place = place._replace(until=self._clock.seconds() + self.lasts)
        return place

    async def _slowly(
        self, what: str, identifier: str, does: Callable[..., Awaitable[T]], *more: Any
    ) -> T:
        self.asked.append((what, identifier))
        if what in self.errors:
            raise self.errors[what]
        result = await does(identifier, *more)
        if what in self.hold:
            self.held.append(Deferred())
            await self.held[-1]
        return result


@implementer(ITrigger)
class Waker:
    """A trigger that only notes which terminals it should wake.

    :ivar woken: each terminal, with the host and port that it was to be told at
    """

    def __init__(self) -> None:
        self.woken: list[tuple[str, str, int]] = []

    async def wake(self, identifier: str, address: Contact) -> None:
        self.woken.append((identifier, address.host, address.port))


def with_resolver(**options: Any) -> tuple[Scene, SlowResolver]:
    """A scene around a resolver that does as the test says."""
    clock = FakeReactor()
    resolver = SlowResolver(clock)
    return Scene(clock=clock, resolver=resolver, **options), resolver


def with_store(*permits: PermitChange, **options: Any) -> tuple[Scene, SlowStore]:
    """A scene around a store that does as the test says."""
    store = SlowStore(*permits)
    return Scene(store=store, **options), store
