"""No address leaves except through the ledger (I1).

Read from the source: each function that names a field of an address, or reads a host, is listed
here with the reason why it may. And tried: in conversations of many kinds, each address that was
sent to a terminal is compared with what had been recorded by then.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from twisted.internet.defer import Deferred

from broker.interfaces import StoreFailed
from broker.mediator.ledger import Ledger
from broker.tables.disclosures import Disclosure
from tests.mediator.scene import (
    ACCEPTED,
    CAN,
    CANT,
    DENIED,
    SCENES,
    Scene,
    SlowStore,
    identifier,
    query,
    register,
)
from tests.support.clock import settle
from tests.support.transport import FakeTransport

ROOT: Final = Path(__file__).resolve().parent.parent

#: The fields of messages that hold an address, or a part of one.
FIELDS: Final = frozenset(
    f"{whose}{what}"
    for whose in ("", "callee ", "caller ")
    for what in ("address", "port", "local", "seen", "back")
)
#: Attributes that hold an address.
ATTRIBUTES: Final = frozenset(("host",))

#: The functions that may touch an address, and why no address of a callee leaves there.
ALLOWED: Final[dict[str, str]] = {
    # The one way out: from a record of the ledger.
    "broker.mediator.ledger.Ledger.record": "makes the record of what is about to be sent",
    "broker.mediator.call._to_caller": "sends a caller what the ledger has recorded",
    "broker.mediator.call._to_callee": "sends a callee the record of its caller (C7)",
    "broker.mediator.call._candidate_fields": "sends either side the records of candidates",
    "broker.mediator.connect_back._to_callee": "sends a callee the record of where its"
    " caller waits, at the caller's request",
    # A record, for its owner or for the operator.
    "broker.tables.disclosures": "the names of the fields in a record's text",
    "broker.store.rows": "the columns of a record in the database",
    "broker.mediator.admin._row": "a record, at the operator's socket on this machine",
    "broker.cli.terminal.show_disclosures": "prints a terminal's own records for it",
    # Between the mediator and its resolver; no terminal reads it.
    "broker.resolver.remote.RemoteResolver._in_force": "compares",
    "broker.resolver.remote.RemoteResolver._binding": "reads the resolver's answer",
    "broker.resolver.remote.RemoteResolver.register": "compares",
    "broker.resolver.replication.registration": "a mediator registers at its resolver",
    "broker.resolver.replication.key_handover": "a mediator hands a terminal's key to its resolver",
    "broker.resolver.server.ResolverServer._look_up": "compares",
    "broker.resolver.server.ResolverServer._tell": "answers a mediator that has proven to be one",
    "broker.resolver.server.ResolverServer._open_link": "logs where a refused link comes from",
    "broker.resolver.server.ResolverServer._proven": "decides whether a peer is this machine",
    "broker.resolver.registrar": "the names of the fields that a registration may have",
    "broker.resolver.registrar.ConnectionRegistrar._register": "reads a registration",
    "broker.resolver.registrar.ConnectionRegistrar._register_for": "reads a registration",
    "broker.resolver.registrar.ConnectionRegistrar._take_key": "reads what a mediator hands over",
    "broker.resolver.udp_registrar.UdpRegistrar._source_query": "tells a sender its own source",
    "broker.mediator.address_check.AddressCheck.answer": "tells a terminal its own source",
    "broker.resolver.dns.Dns.locate": "keeps what DNS answers",
    "broker.resolver.dns._located": "keeps what DNS answers",
    "broker.resolver.name_lookup.NameLookup._resolve": "asks DNS about a domain name",
    "broker.resolver.name_lookup.NameLookup.check": "compares",
    "broker.resolver.lookup_cache._hosts": "keeps what DNS answers",
    # Candidates of a call, on their way to the ledger, which makes the records of them.
    "broker.mediator.call.CallHandler.call": "sees whether a caller waits",
    "broker.mediator.candidates.between": "chooses those that both have offered",
    "broker.mediator.candidates._both_seen": "where both connections come from, if both offered it",
    "broker.mediator.connections.ConnectionRegistry.source_of": "where a callee's connection comes"
    " from",
    "broker.mediator.candidates.waits_at": "where a caller waits, as it asked",
    "broker.mediator.connection.seen_ip": "gives these functions the source of a connection",
    "broker.mediator.candidates.offer": "reads what a registration offers",
    # Decides by an address, logs it or dials it, and sends it to no terminal.
    "broker.mediator.auth.login.is_private": "decides whether a connection is from this machine",
    "broker.mediator.connections.ConnectionRegistry.registered": "logs where a terminal is"
    " reached now",
    "broker.mediator.registration_plan": "the names of the fields that offer candidates",
    "broker.mediator.registration_plan.RegistrationPlan._read_offer": "reads a registration",
    "broker.mediator.wakeup_dialer.WakeUpDialer._dial": "dials a terminal, and sends it no address",
    "broker.mediator.registration_plan.RegistrationPlan._read_contact": "reads a registration",
    "broker.mediator.connect_back.ConnectBack._caller_address": "reads where a caller says that"
    " it waits",
    "broker.mediator.registration_plan.RegistrationPlan.port": "reads a registration",
    "broker.tables.locations.LocationTable.renew": "compares",
    "broker.tables.address_policy.resolve_contact": "validates an address",
    "broker.net.per_source.source_of": "finds the source that a connection counts for",
    "broker.net.peer_address.remote_host_of": "where a connection comes from, to validate what"
    " it registers",
    "broker.net.peer_address.local_host_of": "our own address",
    # The operator's own: settings, listeners and the log.
    "broker.service.settings.values.Interface.loopback": "a setting",
    "broker.service.settings.values.Server.loopback": "a setting",
    "broker.service.settings.values.parse_server": "a setting",
    "broker.service.ports.Listening._log": "logs where this server listens",
    "broker.service.ports.Listening.open_udp": "opens a port of this server",
    "broker.service.settings.tls.endpoint": "a setting",
    "broker.service.settings.tls.mediator_tls": "a setting",
    "broker.service.settings.tls.resolver_tls": "a setting",
    "broker.service.settings.common.address_of": "a peer's source, in the operator's trace",
    # A terminal: its own address, and what its mediator has sent it.
    "broker.service.terminal.TerminalService.open": "logs where this terminal listens",
    "broker.terminal.calls.place_call.candidates_in": "reads where its mediator said that its"
    " callee is",
    "broker.terminal.calls.place_call._AwaitCallee.__init__": "tells its own application where it"
    " waits itself",
    "broker.terminal.calls.wait_for_callee.PortOffer.__init__": "where it waits itself",
    "broker.terminal.calls.dial_back.DialBack._dial_later": "validates where its caller waits",
    "broker.terminal.calls.dial_back.DialBack._not_reached": "logs which caller it could not"
    " reach, and where",
    "broker.terminal.candidates.Candidate.__str__": "tells its own application where it dials",
    "broker.terminal.registration.client": "what an answer must have",
    "broker.terminal.registration.client.MediatorClient.is_private": "where its mediator is",
    "broker.terminal.registration.client.MediatorClient.outside": "asks and reads where it is"
    " seen itself",
    "broker.terminal.calls.dial_back.DialBack._decide": "validates where it is asked to connect",
    "broker.terminal.calls.dial_back.DialBack.come": "dials where its caller waits",
    "broker.terminal.registration.notices.parse_call_notice": "reads where that is, told by its"
    " mediator",
    "broker.terminal.registration.notices.parse_connect_back_request": "reads where that is,"
    " told by its mediator",
    "broker.terminal.registration.client.MediatorClient.connect_back": "tells its mediator where"
    " it waits itself",
    "broker.terminal.registration.client.MediatorClient.local_host": "its own address",
    "broker.terminal.registration.client.MediatorClient.outside.read": "reads where it is seen"
    " itself",
    "broker.terminal.registration.client.MediatorClient.query": "offers its mediator candidates of"
    " its own",
    "broker.terminal.registration.client.MediatorClient.register": "registers its own address",
    "broker.terminal.registration.client.MediatorClient.remote_host": "where its mediator is, to"
    " send datagrams there",
    "broker.terminal.registration.udp_keepalive.Keepalive._received": "sees what a datagram is",
    "broker.terminal.registration.udp_keepalive.Keepalive._source_received": "reads its own"
    " address, as it is seen",
    "broker.terminal.registration.idle._FirstAddress.addressResolved": "what DNS said",
    "broker.messages.grammar": "the rules of all fields",
    "broker.messages.statements": "a question for the sender's own source (UdpRegistrar)",
}


def _names_a_field(text: str) -> bool:
    """Whether a text is such a name, or has its line in it; ``address`` is a word like others."""
    text = text.replace("_", " ")
    told = text.casefold()
    if any(f"{name}:" in told for name in FIELDS if " " in name):
        return True
    if any(line.startswith(("Address:", "Port:")) for line in text.split("\n")):
        return True
    return told in FIELDS and (" " in told or text[0].isupper())


class Ways(ast.NodeVisitor):
    """Finds the functions of a module in which an address could be put into a message."""

    def __init__(self, module: str) -> None:
        self.found: set[str] = set()
        self._inside = [module]

    def _enter(self, node: Any) -> None:
        documented = node.body and isinstance(node.body[0], ast.Expr)
        if documented and isinstance(node.body[0].value, ast.Constant):
            node.body = node.body[1:]
        if isinstance(node, ast.Module):
            self.generic_visit(node)
        else:
            self._inside.append(node.name)
            self.generic_visit(node)
            self._inside.pop()

    visit_Module = visit_ClassDef = visit_FunctionDef = visit_AsyncFunctionDef = _enter

    def _note(self) -> None:
        self.found.add(".".join(self._inside))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """``address.host``"""
        if node.attr in ATTRIBUTES:
            self._note()
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        """``fields["Callee Address"]``, ``"Callee Address:…"``, ``getattr(address, "host")``"""
        value = node.value
        text = value.decode("latin-1") if isinstance(value, bytes) else value
        if isinstance(text, str) and (_names_a_field(text) or text in ATTRIBUTES):
            self._note()

    def visit_keyword(self, node: ast.keyword) -> None:
        """``Message(NOTIFY, Callee_Address=…)``"""
        if node.arg is not None and node.arg[:1].isupper() and _names_a_field(node.arg):
            self._note()
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """Whatever takes a whole address apart, or gives where a connection comes from."""
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name in {
            "astuple",
            "asdict",
            "attrgetter",
            "remote_host_of",
            "seen_ip",
            "remote_port_of",
        }:
            self._note()
        self.generic_visit(node)


def ways_of(source: str, module: str) -> set[str]:
    """The functions of a source, by their whole names, in which an address could leave."""
    ways = Ways(module)
    ways.visit(ast.parse(source))
    return ways.found


def ways_in(root: Path) -> Iterator[str]:
    """Those of every module below ``root/broker``."""
    for path in sorted(root.glob("broker/**/*.py")):
        module = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        yield from sorted(ways_of(path.read_text(encoding="utf-8"), module))


#: A module with every way that was thought of, one a function, and some that are none.
SLY: Final = """
def one(request, place):
    request.reply("", {"Callee Address": where(place)})
def two(peer, place):
    peer.send(Message(NOTIFY, Callee_Address=where(place)))
def three(place):
    return place.contact.host
def four(place):
    return getattr(place.contact, "host")
def five(place):
    return f"NOTIFY\\nCallee Address:{place}"
def six(place):
    return b"caller address:" + place
def seven(place):
    message.fields["Caller Port"] = place
def eight(place):
    return astuple(place.contact)
class Peer:
    async def nine(self):
        return [one.host for one in self.places]
def ten(place):
    return {"Address": place}
def eleven(place):
    return f"REGISTER\\nAddress:{place}"
def twelve(peer):
    return remote_host_of(peer.stream)
def thirteen(place):
    return {"Callee Seen": place}
def none(place):
    '''Callee Address:1.2.3.4, host'''
    return "the address", place.contact, "port", "an address: none"
"""


class CodeTests:
    """What the source says."""

    def test_no_other_way(self) -> None:
        """Each function is listed with its reason: a new one is reviewed before it is added."""
        found = set(ways_in(ROOT))
        assert found - ALLOWED.keys() == set(), "could send an address: through the ledger?"
        assert ALLOWED.keys() - found == set(), "there is no such function"

    def test_it_would_be_found(self) -> None:
        """The check does fail where there is another way."""
        numbers = ("one", "two", "three", "four", "five", "six", "seven", "eight", "Peer.nine")
        more = ("ten", "eleven", "twelve", "thirteen")
        expected = {f"sly.{name}" for name in (*numbers, *more)}
        assert ways_of(SLY, "sly") == expected

    def test_in_a_copy(self, tmp_path: Path) -> None:
        """It does fail with one line more in the mediator's own code."""
        source = (ROOT / "broker/mediator/call.py").read_text(encoding="utf-8")
        end_of = "    def _candidates("
        more = f"    def _tell(self, place):\n        return place.contact.host\n\n{end_of}"
        assert source.count(end_of) == 1
        target = tmp_path / "broker" / "mediator" / "call.py"
        target.parent.mkdir(parents=True)
        target.write_text(source.replace(end_of, more), encoding="utf-8")
        assert set(ways_in(tmp_path)) - ALLOWED.keys() == {"broker.mediator.call.CallHandler._tell"}


#: Where the terminals are: no text but an address has this in it.
HOSTS: Final = {name: f"203.0.113.{77 + n}" for n, name in enumerate("abcd")}
#: Where their connections come from: two of them are behind one router.
ORIGINS: Final = {**HOSTS, "a": "203.0.113.99", "b": "203.0.113.99"}
#: Where they listen in their own networks.
LOCALS: Final = {name: f"10.20.30.{77 + n}" for n, name in enumerate("abcd")}
#: The ports at which they wait for their callees.
BACK: Final = {name: 31_077 + n for n, name in enumerate("abcd")}


QUESTIONS: Final = (
    "QUERY\nDISCLOSURES\n\n",
    "QUERY\nPERMITS\n\n",
    "QUERY\nLOOKUP\nCallee:I{other}\n\n",
)


class Watch:
    """Sees each write to a connection, and what had been recorded by then.

    :ivar told: how many writes told an address, as they may
    :ivar candidates: how many of them told a candidate
    :ivar wrong: those that did and may not
    """

    def __init__(self, patched: pytest.MonkeyPatch, *, first: bool) -> None:
        self.told = 0
        self.candidates = 0
        self.wrong: list[tuple[str, str]] = []
        self.noted: list[Disclosure] = []
        self.store = Store()
        self._first = first
        self.scene = Scene(store=self.store, ledger_first=first)
        patched.setattr(self.scene.context.disclosures, "note", self._note)
        write, sequence = FakeTransport.write, FakeTransport.writeSequence

        def see(transport: FakeTransport, data: bytes) -> None:
            self._see(transport, data)
            write(transport, data)

        def see_all(transport: FakeTransport, data: Any) -> None:
            self._see(transport, b"".join(data))
            sequence(transport, data)

        patched.setattr(FakeTransport, "write", see)
        patched.setattr(FakeTransport, "writeSequence", see_all)

    def _note(self, *disclosures: Disclosure) -> None:
        self.noted += disclosures
        Ledger.note(self.scene.context.disclosures, *disclosures)

    def _see(self, transport: FakeTransport, data: bytes) -> None:
        recorded = self.store.told if self._first else self.noted
        places = {
            (one.owner, one.recipient, text)
            for one in recorded
            for text in (one.host, f"{one.host} {one.port}")
        }
        for name, client in self.scene.clients.items():
            if client.transport is not transport:
                continue
            for whose, text in self._places():
                if whose == name[0] or f":{text}".encode() not in data:
                    continue
                if (identifier(whose), identifier(name), text) in places:
                    self.told += 1
                    self.candidates += text not in HOSTS.values()
                else:
                    self.wrong.append((name, whose))

    def _places(self) -> Iterator[tuple[str, str]]:
        """Each address by which a terminal could be found."""
        for places in (HOSTS, LOCALS):
            yield from places.items()
        for name, port in BACK.items():
            yield name, f"{ORIGINS[name]} {port}"
        for name, client in self.scene.clients.items():
            peer: Any = client.transport.peer
            if name in HOSTS:
                yield name, f"{peer.host} {peer.port}"


class Store(SlowStore):
    """A store that is slow with disclosures too."""

    def __init__(self) -> None:
        super().__init__()
        self.slow_ledger = True


def converse(watch: Watch, seed: int) -> None:
    """A conversation of some length, of all that terminals may say."""
    drawn = random.Random(seed)
    scene, store = watch.scene, watch.store
    for name in HOSTS:
        scene.connect(name, host=ORIGINS[name])
        permits = ",".join(identifier(other) for other in HOSTS if other != name)
        where = [f"Address:{HOSTS[name]}", f"Local:{LOCALS[name]} 1203", "Seen:Yes"]
        scene.clients[name].type(register(identifier(name), *where, f"Accept:Create {permits}"))
    for _ in range(60):
        _speak(scene, drawn, drawn.choice(list(scene.clients)))
        for _ in range(drawn.randrange(3)):  # the callees answer what they are asked
            each = drawn.choice(list(scene.clients))
            heard = scene.heard(each).replace("\r", "")
            if "STATUS\n" in heard:
                scene.clients[each].type(drawn.choice([CAN, CAN, CAN, CANT]))
            if "REQUEST\n" in heard:
                scene.clients[each].type(drawn.choice([ACCEPTED, DENIED]))
        while store.pending and drawn.random() < 0.8:
            _decide(store.pending.pop(0), fails=drawn.random() < 0.15)
            settle(scene.clock)
    while store.pending:
        _decide(store.pending.pop(0), fails=False)
        settle(scene.clock)


def _speak(scene: Scene, drawn: random.Random, name: str) -> None:
    """One terminal says something, or goes, or time passes."""
    client, own, other = scene.clients[name], identifier(name), drawn.choice("abcdx")
    mark = [f"Transaction:{drawn.randrange(10**6)}"] if drawn.random() < 0.5 else []
    what = drawn.randrange(14)
    if what <= 4:
        ways = [line for line in ("Seen:Yes", f"Back:{BACK[name[0]]}") if drawn.random() < 0.5]
        client.type(query(own, f"I{other}", *ways, *mark))
    elif what == 5:
        edit = drawn.choice(["Add", "Delete"])
        client.type(register(own, f"Accept:{edit} I{other}", *mark))
    elif what == 6:
        client.type(drawn.choice(QUESTIONS).format(other=other))
    elif what == 7:
        client.type(register(own, f"Policy:{drawn.choice(['List', 'Password'])}"))
    elif what == 8:
        scene.broker.advance(drawn.choice([0.1, 0.3, 2, 6]))
    elif what == 9 and len(scene.clients) > 2:
        scene.clients.pop(name).vanish()
    elif what == 10 and name in HOSTS:
        offers = [f"Local:{LOCALS[name]} {drawn.randrange(1, 9999)}", "Seen:Yes"]
        where = [f"Address:{HOSTS[name]}", f"Port:{drawn.randrange(1, 9999)}"]
        client.type(register(own, *where, *offers[: drawn.randrange(3)]))
    elif what > 10 and name in HOSTS:
        wish = (f"Callee:I{other}", "Password:x", f"Address:{HOSTS[name]}", *mark)
        client.type("\n".join(["REQUEST", *wish, "", ""]))


def _decide(commit: Deferred[None], *, fails: bool) -> None:
    if fails:
        commit.errback(StoreFailed("the disk is full"))
    else:
        commit.callback(None)


@pytest.fixture(autouse=True)
def _no_scenes() -> Iterator[None]:
    yield
    SCENES.clear()


class ConversationTests:
    """What is sent."""

    @pytest.mark.parametrize("first", [False, True], ids=["behind", "first"])
    def test_recorded_before(self, first: bool) -> None:
        """No address goes to a terminal without a record of that by then (I1).

        First: none that is not on the disk.
        """
        told = candidates = 0
        for seed in range(40):
            with pytest.MonkeyPatch.context() as patched:
                watch = Watch(patched, first=first)
                converse(watch, seed)
                assert watch.wrong == [], seed
                told += watch.told
                candidates += watch.candidates
        assert told - candidates > 40, "no address was sent: this proves nothing"
        assert candidates > 40, "no candidate was sent: this proves nothing of them"

    @pytest.mark.parametrize("broken", ["no record", "another's", "behind", "but one"])
    def test_it_would_be_seen(self, broken: str) -> None:
        """The watch does see an address without its record."""

        async def at_once(ledger: Ledger, *disclosures: Disclosure) -> None:
            Deferred.fromCoroutine(_kept(ledger, *disclosures)).addErrback(lambda _: None)

        async def _kept(ledger: Ledger, *disclosures: Disclosure) -> None:
            await ledger._store.commit(disclosures)

        async def nothing(ledger: Ledger, *disclosures: Disclosure) -> None:
            pass

        async def but_one(ledger: Ledger, *disclosures: Disclosure) -> None:
            await ledger._store.commit(disclosures[:-1])

        def another(ledger: Ledger, whose: str, told: str, *rest: Any) -> Disclosure:
            return record(ledger, whose, "Ix", *rest)

        record = Ledger.record
        wrong = 0
        for seed in range(10):
            with pytest.MonkeyPatch.context() as patched:
                if broken == "no record":
                    patched.setattr(Ledger, "commit", nothing)
                elif broken == "behind":
                    patched.setattr(Ledger, "commit", at_once)
                elif broken == "but one":
                    patched.setattr(Ledger, "commit", but_one)
                else:
                    patched.setattr(Ledger, "record", another)
                watch = Watch(patched, first=True)
                converse(watch, seed)
                wrong += len(watch.wrong)
        assert wrong
