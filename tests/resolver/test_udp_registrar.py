"""Registration by UDP: who is believed, what a stranger can do (broker.resolver.udp_registrar)."""

from __future__ import annotations

import random
import tracemalloc
from typing import Any, ClassVar

import pytest

from broker.messages.datagram import parse_datagram
from broker.messages.errors import CalleeNotFound, RegistrationFailed, ServiceUnavailable
from broker.messages.message import Message
from broker.messages.signing import sign, verify
from broker.resolver.locations import LocalResolver
from broker.resolver.registrar import NO_IDENTIFIER, NO_KEY
from broker.resolver.udp_registrar import NOTICE_INTERVAL, PADDED, PRUNE_INTERVAL, UdpRegistrar
from broker.tables.locations import Contact
from broker.tables.nat_bindings import BINDING_SECONDS
from broker.tables.udp_keys import KEYS_AN_IDENTIFIER, UdpKey
from tests.resolver.apart import PORT, Apart
from tests.resolver.apart import address as an_address
from tests.support.clock import result_of
from tests.support.reactor import FakeDatagramPort, FakeReactor

HERE, THERE, V6 = ("192.0.2.1", 4000), ("198.51.100.7", 5000), ("2001:db8::7", 6000)
MAPPED = ("::ffff:192.0.2.1", 4000)
NAME = "K" + "a" * 22
SECRET = bytes(range(32))
WALL = 1_800_000_000
#: The fields with which a mediator hands a key over.
KEY = f"Registration Key:{SECRET.hex()}"
HANDED = f"Identifier:Ib\nKey ID:K1\n{KEY}"
#: A second key, as arguments of ``registration``.
OTHER: dict[str, Any] = {"name": "K" + "b" * 22, "key": bytes(32)}


def registration(
    sequence: int, *, key: bytes = SECRET, name: str = NAME, **fields: object
) -> bytes:
    """A signed ``REGISTER``; the sequence stands last, unless a port follows it (``then``)."""
    message = Message("REGISTER", Identifier=str(fields.pop("identifier", "Ib")))
    last = fields.pop("then", None)
    message.fields["Key ID"] = name
    message.fields |= {field: str(value) for field, value in fields.items()}
    message.fields["Sequence"] = str(sequence)
    if last is not None:
        message.fields["Port"] = str(last)
    return sign(message, key)


class Stage:
    """A registrar, and the network around it.

    :ivar port: the port that it is spoken to at
    """

    def __init__(self, apart: UdpApart | None = None, *, wall: float = WALL) -> None:
        """
        :param apart: where the registrar is, instead of one of the stage's own
        """
        self.clock = apart.clock if apart else FakeReactor()
        self.registrar = (
            apart.registrar
            if apart
            else UdpRegistrar(self.clock, random.Random(1).randbytes, wall=lambda: wall)
        )
        self.port: FakeDatagramPort = self.clock.listenUDP(1200, self.registrar)

    def key(self, name: str = NAME, identifier: str = "Ib", key: bytes = SECRET) -> None:
        """A key that a mediator hands over."""
        self.registrar.add_key(UdpKey(name, identifier, key, 1203, 600))

    def says(self, datagram: bytes, source: tuple[str, int] = HERE) -> Message | None:
        """A datagram arrives; what answers it: at most one datagram, not longer (I13)."""
        self.port.sent.clear()
        self.port.receive(datagram, source)
        if not self.port.sent:
            return None
        [(answer, to)] = self.port.sent
        assert to == source
        assert len(answer) <= len(datagram)
        return parse_datagram(answer)

    def answer(self, datagram: bytes, source: tuple[str, int] = HERE) -> Message:
        """What is answered to a datagram that must be."""
        answer = self.says(datagram, source)
        assert answer is not None
        return answer

    def challenge(self, datagram: bytes, source: tuple[str, int] = HERE) -> str:
        """The cookie that a datagram is answered with."""
        return self.answer(datagram, source).fields["Challenge"]

    def registers(self, sequence: int = 1, source: tuple[str, int] = HERE, **more: Any) -> None:
        """A terminal registers from a new source, and shows that it reads there."""
        more["Challenge"] = self.challenge(registration(sequence, **more), source)
        self.answer(registration(sequence, **more), source)

    def at(self, identifier: str = "Ib") -> tuple[str, int] | None:
        """Where a terminal's datagrams come from."""
        for key in reversed(self.registrar.keys.of(identifier, self.clock.seconds())):
            mapping = self.registrar.mappings.of(key, self.clock.seconds())
            if mapping is not None:
                return mapping.source
        return None

    def until(self) -> float | None:
        """Until when the place of ``Ib`` that was seen holds."""
        place = self.registrar.seen("Ib")
        return place and place.until

    def kept(self) -> tuple[int, int]:
        """How many mappings and keys the registrar has."""
        return len(self.registrar.mappings), len(self.registrar.keys)

    def silent(self, datagram: bytes, source: tuple[str, int] = HERE) -> None:
        """It is passed over, and only counted."""
        before = self.registrar.counts["datagrams ignored"]
        assert self.says(datagram, source) is None
        assert self.registrar.counts["datagrams ignored"] == before + 1

    def notifies(self, times: int = 1, every: float = 0) -> list[tuple[Message, tuple[str, int]]]:
        """What goes out, and where, when Ib must be told to connect."""
        self.port.sent.clear()
        for _ in range(times):
            assert self.registrar.notify("Ib") is True
            self.clock.advance(every)
        return [(parse_datagram(data), to) for data, to in self.port.sent]


@pytest.fixture
def stage() -> Stage:
    """A registrar that has a key of Ib's."""
    stage = Stage()
    stage.key()
    return stage


@pytest.fixture
def known(stage: Stage) -> Stage:
    """One where Ib is registered, and has sent a keepalive; the next sequence is 3."""
    stage.registers()
    stage.answer(registration(2))
    return stage


class RegisteringTests:
    """A terminal registers (fig. 7, D1)."""

    @pytest.mark.parametrize("source", [HERE, V6])
    def test_whole_way(self, stage: Stage, source: tuple[str, int]) -> None:
        """A challenge, then the answer; both are signed, and say which datagram they answer."""
        challenge = stage.answer(registration(1), source)
        assert list(challenge.fields) == ["Challenge", "Sequence", "Signature"]
        assert verify(stage.port.sent[0][0], SECRET)
        assert stage.at() is None
        cookie = challenge.fields["Challenge"]
        answer = stage.answer(registration(1, Challenge=cookie), source)
        assert answer.masked()[:3] == ["NOTIFY", "Registration Completed.", "Sequence:1"]
        assert verify(stage.port.sent[0][0], SECRET)
        assert stage.at() == source

    @pytest.mark.parametrize(
        ("name", "answered"),
        [
            pytest.param(NAME, True, id="the shortest question with a key of ours"),
            pytest.param("K", False, id="no room for a challenge, since the Key ID is shorter"),
        ],
    )
    def test_when_the_question_is_short_then_no_challenge_is_longer(
        self, name: str, answered: bool
    ) -> None:
        """A challenge is never longer than what it answers (I13)."""
        stage = Stage()
        stage.key(name, "I")
        asked = registration(1, name=name, identifier="I")
        assert (stage.says(asked, V6) is not None) is answered

    def test_keepalive(self, known: Stage) -> None:
        """From the source that is known it is answered at once, however often."""
        for sequence in (3, 4, 9, 10, 999, 1000, 10**14):
            answer = known.answer(registration(sequence))
            assert answer.fields["Sequence"] == str(sequence)
            assert verify(known.port.sent[0][0], SECRET)
        assert known.registrar.counts["mappings made"] == 1

    def test_first_keepalive_in_other_words(self, stage: Stage) -> None:
        """The words may change: they are then read again, and need no challenge (D1)."""
        stage.registers()
        for sequence in range(2, 8):
            stage.answer(registration(sequence, Expires=50 + sequence // 3))
        stage.answer(registration(8, then=9))
        stage.answer(registration(9, then=9))
        assert stage.registrar.counts["challenges"] == 1

    def test_moves(self, known: Stage) -> None:
        """Another source is challenged first; then it is there, and not where it was (D1)."""
        cookie = known.challenge(registration(3), THERE)
        known.answer(registration(3))  # until it moves it stays: the old source goes on (I12)
        assert known.at() == HERE
        known.answer(registration(4, Challenge=cookie), THERE)
        assert known.at() == THERE
        assert known.registrar.counts["mappings moved"] == 1
        known.challenge(registration(5), HERE)
        assert known.at() == THERE

    def test_two_keys_at_one_source(self, known: Stage) -> None:
        """A terminal that has logged in again is known at the same source by its new key."""
        known.key(**OTHER)
        known.registers(1, **OTHER)
        assert known.at() == HERE
        assert len(known.registrar.mappings) == 1

    def test_behind_one_router(self, stage: Stage) -> None:
        """Terminals at one address, behind one router, are told apart by their ports."""
        stage.key(**OTHER, identifier="Ic")
        stage.registers()
        stage.registers(1, (HERE[0], 4001), **OTHER, identifier="Ic")
        assert (stage.at("Ib"), stage.at("Ic")) == (HERE, (HERE[0], 4001))


def signed(verb: str, statement: str = "", **fields: str | int) -> bytes:
    """A datagram that Ib's key has signed, with fields of its own choice."""
    return sign(Message(verb, statement, **fields), SECRET)


class ForgedTests:
    """What is not proven changes nothing, and is not answered (I4, I5, I10, I12, I13)."""

    FORGED: ClassVar = {
        "no signature": registration(3)[:-78] + b"\r\n",
        "another's key": registration(3, key=bytes(32)),
        "an unknown key": registration(3, name="K" + "z" * 22),
        "another's identifier": registration(3, identifier="Ic"),
        "no key": signed("REGISTER", Identifier="Ib", Sequence=3),
        "no sequence": registration(3).replace(b"Sequence:3\r\n", b""),
        "a sequence that was": registration(2),
        "a sequence before that": registration(1),
        "a negative one": registration(-3),
        "one of too many digits": registration(10**15),
        "other digits": signed("REGISTER", Identifier="Ib", Key_ID=NAME, Sequence="٣"),
        "bare, as in the documents": b"REGISTER\r\nIdentifier:Ib\r\n\r\n",
        "a notice of ours": signed(
            "NOTIFY", "Connection Requested.", Identifier="Ib", Key_ID=NAME, Sequence=3
        ),
        "another verb": signed("QUERY", Key_ID=NAME, Identifier="Ib", Sequence=3),
        "a statement": signed("REGISTER", "STATUS", Key_ID=NAME, Identifier="Ib", Sequence=3),
        "a body": registration(3, Length=4),
        "no message": signed("REGISTER", Key_ID=NAME, Identifier="", Sequence=3),
        "two keys": sign(
            Message.of("REGISTER", {"Identifier": f"Ib\r\nKey ID:{NAME}", "Key ID": "x"}), SECRET
        ),
        "nothing": b"",
        "noise": bytes(range(256)),
        "too long": registration(3, Padding="x" * 1200),
        "cut off": registration(3)[:-1],
        "a byte more": registration(3) + b"\n",
    }

    @pytest.mark.parametrize("source", [HERE, THERE])
    @pytest.mark.parametrize("case", FORGED)
    def test_silence(self, known: Stage, case: str, source: tuple[str, int]) -> None:
        """From any source: silence, a count, and the next keepalive is taken as before."""
        mapping = known.registrar.mappings.at(HERE)
        assert mapping is not None
        until = mapping.until
        known.clock.advance(1)
        known.silent(self.FORGED[case], source)
        assert known.at() == HERE
        assert (mapping.key.last_received, mapping.until) == (2, until)
        assert len(known.registrar.mappings) == 1
        known.answer(registration(3))

    def test_replayed(self, known: Stage) -> None:
        """What was heard before, challenged or answered, is nothing the second time (I10)."""
        keepalive = registration(3)
        known.answer(keepalive)
        for source in (HERE, THERE):
            known.silent(keepalive, source)

    def test_caught_on_its_way(self, known: Stage) -> None:
        """A challenge is no help to another: not to who caught the datagram and cannot sign what
        would answer it, nor from a source that it was not made for (I12).
        """
        cookie = known.challenge(registration(3), THERE)
        known.silent(registration(4, key=bytes(32), Challenge=cookie), THERE)
        known.challenge(registration(4, Challenge=cookie), V6)
        assert known.at() == HERE

    def test_challenge_does_not_use_up(self, stage: Stage) -> None:
        """The sequence advances only when the datagram is accepted: not by a challenge."""
        key = stage.registrar.keys.get(NAME, 0)
        assert key is not None
        stage.says(registration(5))
        assert key.last_received == -1
        stage.registers(5)
        assert key.last_received == 5

    @pytest.mark.parametrize(
        "host",
        ["0.0.0.0", "255.255.255.255", "224.0.0.1", "ff02::1", "fe80::1", "::", "192.0.2.1:0"],
    )
    def test_where_no_terminal_can_be(self, stage: Stage, host: str) -> None:
        """No terminal is registered at an address, or a port, that can have none (I12)."""
        source = (HERE[0], 0) if host == "192.0.2.1:0" else (host, 4000)
        stage.silent(registration(1), source)
        if source[1]:
            stage.silent(AddressTests.question(octets=200), source)

    def test_allocates_nothing(self, known: Stage) -> None:
        """Datagrams of strangers leave nothing behind, from however many sources (I14)."""
        forged = [registration(3, key=bytes(32)), registration(3, name="K" + "z" * 22), b"x" * 200]
        flood = [(one, (f"10.{n >> 8}.{n & 255}.1", 4000)) for n in range(3000) for one in forged]
        for datagram, source in flood[:300]:
            known.registrar.datagramReceived(datagram, source)
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            for datagram, source in flood:
                known.registrar.datagramReceived(datagram, source)
            after = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert after - before < 200_000  # caches of addresses that were parsed are bounded
        assert known.kept() == (1, 1)

    def test_challenged_leaves_nothing(self, known: Stage) -> None:
        """Nor does one that is signed, and comes from ever new sources (I14)."""
        for n in range(500):
            known.says(registration(3 + n), ("10.0.0.1", 1000 + n))
        assert len(known.registrar.mappings) == 1
        assert known.at() == HERE


class LastingTests:
    """For how long it is believed where a terminal is (I10)."""

    def test_expires(self, known: Stage) -> None:
        """Without keepalives, as long as usual; from then on it must show again that it reads
        there, from the same source too.
        """
        known.clock.advance(BINDING_SECONDS - 0.1)
        assert known.at() == HERE
        known.clock.advance(0.1)
        assert (known.at(), known.until()) == (None, None)
        assert known.registrar.notify("Ib") is False
        known.challenge(registration(3))
        assert known.at() is None

    def test_named(self, stage: Stage) -> None:
        """Or as long as it has named; with ``Expires:0`` it is gone at once."""
        stage.registers(Expires=75)
        stage.clock.advance(74.9)
        stage.answer(registration(2, Expires=75))
        stage.answer(registration(3, Expires=75))
        stage.clock.advance(74.9)
        assert stage.at() == HERE
        stage.clock.advance(0.1)
        assert stage.at() is None
        stage.registers(4, Expires=75)
        assert stage.at() == HERE
        stage.answer(registration(5, Expires=0))
        assert stage.at() is None

    def test_key_released(self, known: Stage) -> None:
        """A key outlives its connection by its expiry, and is not answered from then on; what is
        told of it does not hold for longer either (I10).
        """
        known.answer(registration(3, Expires=3000))
        assert known.until() == 3000
        known.registrar.keys.release(NAME, 0)
        assert known.until() == 600
        known.clock.advance(100)
        for sequence in range(4, 7):
            known.answer(registration(sequence, Expires=600))
        known.clock.advance(499.9)
        assert known.at() == HERE
        known.clock.advance(0.1)
        assert known.at() is None
        known.silent(registration(9, Expires=600))

    @pytest.mark.parametrize("sixth", [False, True])
    def test_key_dropped(self, known: Stage, sixth: bool) -> None:
        """Where its keys are dropped, nothing of it is left, at once; a key that a sixth one drops
        is not answered either, though its source is known (I2).
        """
        if sixth:
            for n in range(KEYS_AN_IDENTIFIER):
                known.key(f"K{n}")
        else:
            known.registrar.drop_keys("Ib")
        assert known.until() is None
        assert known.registrar.notify("Ib") is False
        known.silent(registration(3))
        assert known.kept() == ((1, KEYS_AN_IDENTIFIER) if sixth else (0, 0))

    def test_told_again(self, known: Stage) -> None:
        """A key that a mediator tells again stays what it was: mapping, sequences and all."""
        known.registrar.notify("Ib")
        known.key()
        assert known.at() == HERE
        known.silent(registration(2))
        known.answer(registration(3))

    def test_swept(self, known: Stage) -> None:
        """What has expired is forgotten in time (I15); with its port it leaves no timer behind."""
        known.registrar.keys.release(NAME, 0)
        known.clock.pump([PRUNE_INTERVAL] * 3)
        assert known.kept() == (0, 1)
        known.clock.pump([PRUNE_INTERVAL] * 10)
        assert known.kept() == (0, 0)
        known.port.stopListening()
        assert known.clock.getDelayedCalls() == []


class AddressTests:
    """What a terminal looks like from outside (E1)."""

    @staticmethod
    def question(*lines: str, octets: int = PADDED) -> bytes:
        """``QUERY`` / ``ADDRESS``, of that length."""
        head = "".join(f"{line}\r\n" for line in ("QUERY", "ADDRESS", *lines)) + "Padding:"
        return f"{head}{'x' * (octets - len(head) - 4)}\r\n\r\n".encode()

    @pytest.mark.parametrize(("source", "host"), [(HERE, HERE[0]), (V6, V6[0]), (MAPPED, HERE[0])])
    def test_told(self, stage: Stage, source: tuple[str, int], host: str) -> None:
        """Address and port that the question came from, and its transaction; anybody may ask."""
        told = Message("NOTIFY", Address=host, Port=source[1])
        assert stage.answer(self.question(), source) == told
        answer = stage.answer(self.question("Transaction:7"), source)
        assert answer.masked()[3:] == ["Transaction:7", "Code:200"]

    def test_short(self, stage: Stage) -> None:
        """What is shorter than an answer may be gets none (I13)."""
        stage.answer(self.question(octets=PADDED))
        stage.silent(self.question(octets=PADDED - 1))
        source = ("2001:db8:1111:2222:3333:4444:5555:6666", 65535)
        asked = self.question("Transaction:" + "t" * 64, octets=PADDED)
        assert stage.says(asked, source) is None

    def test_no_other_question(self, stage: Stage) -> None:
        """No other question is answered, however long (I1)."""
        for verb in ("QUERY\r\nLOOKUP\r\nCallee:Ib", "QUERY\r\nSTATUS", "REQUEST\r\nADDRESS"):
            stage.silent(f"{verb}\r\nPadding:{'x' * 200}\r\n\r\n".encode())


class NoticeTests:
    """A terminal is told to connect (fig. 8a, E1, E3)."""

    def test_told(self, known: Stage) -> None:
        """Where its datagrams come from; it says which terminal it is for and nothing of who asks
        (I26). Where no datagram came from it, or no terminal has that name, nothing goes out.
        """
        known.key(**OTHER, identifier="Ic")
        known.port.sent.clear()
        assert [known.registrar.notify(name) for name in ("Ic", "Ix")] == [False, False]
        assert known.port.sent == []
        [(notice, to)] = known.notifies()
        assert verify(known.port.sent[0][0], SECRET)
        assert to == HERE
        told = ["NOTIFY", "Connection Requested.", "Identifier:Ib", f"Key ID:{NAME}"]
        assert notice.masked()[:4] == told
        assert list(notice.fields)[3:] == ["Sequence", "Signature"]

    def test_sequence(self, known: Stage) -> None:
        """Each is later than all before, also where the resolver has restarted (E3)."""
        notices = known.notifies(50, every=NOTICE_INTERVAL + 0.01)
        told = [int(notice.fields["Sequence"]) for notice, _ in notices]
        assert told == sorted(set(told))
        assert len(told) == 50
        again = Stage(wall=WALL + 1)
        again.key()
        again.registers()
        [(notice, _)] = again.notifies()
        assert told[-1] < int(notice.fields["Sequence"]) < 10**15

    def test_not_often(self, known: Stage) -> None:
        """However often it is asked for, one in each interval goes to one source (I17)."""
        assert len(known.notifies(100, every=0.01)) == 1 / NOTICE_INTERVAL

    def test_along_each(self, known: Stage) -> None:
        """To each source that it has; not where it has ended."""
        known.key(**OTHER)
        known.registers(1, THERE, **OTHER, Expires=10)
        assert [to for _, to in known.notifies()] == [HERE, THERE]
        known.clock.advance(10)
        assert [to for _, to in known.notifies()] == [HERE]

    def test_what_cannot_be_sent(self, known: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        """A datagram that the system doesn't send is lost, and counted."""

        def write(datagram: bytes, to: tuple[str, int]) -> None:
            raise OSError(101, "Network is unreachable")

        monkeypatch.setattr(known.port, "write", write)
        assert known.registrar.notify("Ib")
        assert known.registrar.counts["datagrams not sent"] == 1


class InsideTests:
    """The resolver inside the mediator's process tells where datagrams come from."""

    @staticmethod
    def resolver(stage: Stage) -> LocalResolver:
        """A resolver that the stage's registrar belongs to."""
        return LocalResolver(stage.clock, registrar=stage.registrar)

    @pytest.mark.parametrize("source", [HERE, MAPPED])
    def test_seen(self, stage: Stage, source: tuple[str, int]) -> None:
        """The host that was seen, and the port that the key was got for; never to be dialled; and
        what was seen was not registered, and would not be put back.

        An IPv4 address that came in over IPv6 is told as that address.
        """
        stage.registers(source=source)
        resolver = self.resolver(stage)
        place = result_of(resolver.lookup("Ib"))
        told = place.contact
        assert (told.host, told.port, told.dialable) == ("192.0.2.1", 1203, False)
        assert place.until == BINDING_SECONDS
        with pytest.raises(CalleeNotFound):
            result_of(resolver.registered_binding("Ib"))

    def test_registered_address_wins(self, known: Stage) -> None:
        """A terminal is where it says that it is, and for as long as that holds."""
        resolver = self.resolver(known)
        address = Contact("192.0.2.99", 7, 0, 5)
        result_of(resolver.register("Ib", address))
        assert result_of(resolver.lookup("Ib")).contact is address
        resolver.release("Ib", address)
        known.clock.advance(5)
        assert result_of(resolver.lookup("Ib")).contact.host == "192.0.2.1"

    def test_key(self) -> None:
        """A key that is handed over is valid until it is released, then for its expiry."""
        stage = Stage()
        resolver = self.resolver(stage)
        result_of(resolver.add_key("Ib", NAME, SECRET, 9, 60))
        stage.registers()
        stage.clock.advance(100)
        resolver.release_key("Ib", NAME)
        stage.clock.advance(59)
        stage.registers(2)
        assert result_of(resolver.lookup("Ib")).contact.port == 9
        assert result_of(resolver.trigger("Ib")) is True
        resolver.drop_keys("Ib")
        assert result_of(resolver.trigger("Ib")) is False

    def test_not_taken(self, stage: Stage) -> None:
        """A name that means another key is refused. Where there is no port for datagrams no key is
        taken, and no terminal found so.
        """
        with pytest.raises(RegistrationFailed, match="another key"):
            result_of(self.resolver(stage).add_key("Ic", NAME, SECRET, 9, 60))
        resolver = LocalResolver(FakeReactor())
        with pytest.raises(RegistrationFailed, match="UDP is not offered by this server"):
            result_of(resolver.add_key("Ib", NAME, SECRET, 9, 60))
        resolver.release_key("Ib", NAME)
        resolver.drop_keys("Ib")
        assert result_of(resolver.trigger("Ib")) is False


class UdpApart(Apart):
    """A mediator's resolver apart, with a registrar there, and the link up."""

    def __init__(self) -> None:
        super().__init__(udp=True)
        self.start()

    @property
    def registrar(self) -> UdpRegistrar:
        """The registrar that is there now."""
        registrar = self.resolver.local.registrar
        assert registrar is not None
        return registrar

    def hands_over(
        self, identifier: str = "Ib", name: str = NAME, key: bytes = SECRET, expires: int = 600
    ) -> None:
        """The mediator hands a key over."""
        self.done(self.remote.add_key(identifier, name, key, 9, expires))

    def valid(self) -> dict[str, float]:
        """How long each key at the resolver is still valid, to about ten seconds."""
        now = self.clock.seconds()
        return {
            key.name: round(key.until - now, -1) for key in self.registrar.keys if key.until > now
        }


class ApartTests:
    """A resolver in a process of its own: keys and requests go over the link."""

    @pytest.fixture
    def apart(self) -> UdpApart:
        """The link is up."""
        return UdpApart()

    def test_whole_way(self, apart: UdpApart) -> None:
        """Handed over, registered by UDP, looked up, asked to connect, dropped; the messages on
        the link, whose key no trace shows (I18).
        """
        apart.heard()
        apart.hands_over()
        stage = Stage(apart)
        stage.registers()
        place = apart.ask(apart.remote.lookup("Ib")).value
        told = place.contact
        assert (told.host, told.port, told.dialable) == ("192.0.2.1", 9, False)
        assert place.until - apart.clock.seconds() == BINDING_SECONDS
        assert apart.ask(apart.remote.registered_binding("Ib")).error is CalleeNotFound
        handed = ["REGISTER", "Identifier:Ib", "Port:9", "Expires:600"]
        handed += [f"Key ID:{NAME}", "Registration Key:…"]
        assert apart.heard()[0] == handed
        stage.port.sent.clear()
        assert apart.ask(apart.remote.trigger("Ib")).value is True
        [(notice, to)] = stage.port.sent
        assert (parse_datagram(notice).statement, to) == ("Connection Requested.", HERE)
        apart.remote.release_key("Ib", NAME)
        apart.remote.drop_keys("Ib")
        apart.pump()
        assert apart.heard() == [
            ["REQUEST", "Connection Requested.", "Callee:Ib"],
            handed,
            ["REGISTER", "Identifier:Ib", "UDP:Yes", "Expires:0"],
        ]
        assert apart.ask(apart.remote.trigger("Ib")).value is False
        assert apart.ask(apart.remote.lookup("Ib")).error is CalleeNotFound

    def test_told_again(self, apart: UdpApart) -> None:
        """A resolver that has forgotten everything is told what holds: of open connections' keys
        all, of others what is left.
        """
        apart.hands_over()
        apart.hands_over("Ic", "K2", bytes(32))
        apart.remote.release_key("Ic", "K2")
        apart.advance(10)
        apart.restart()
        apart.advance(3)
        assert apart.valid() == {NAME: 600, "K2": 590}

    def test_held_for_long(self, apart: UdpApart) -> None:
        """A key whose connection is open stays valid, however long; then for its expiry."""
        apart.hands_over()
        apart.pass_by(3600, 10)
        assert NAME in apart.valid()
        apart.remote.release_key("Ib", NAME)
        apart.pass_by(590, 10)
        assert NAME in apart.valid()
        apart.pass_by(20, 10)
        assert apart.valid() == {}
        apart.pass_by(120, 10)
        assert len(apart.remote.replication.keys) == 0

    def test_with_an_address_too(self, apart: UdpApart) -> None:
        """A terminal with an address and a key has both told again, each for its own time."""
        apart.done(apart.remote.register("Ib", an_address(apart.clock, expires=3600)))
        apart.hands_over(expires=60)
        apart.pass_by(600, 5)
        apart.restart()
        apart.advance(3)
        assert NAME in apart.valid()
        assert apart.resolver.told("Ib") == ("127.0.0.1", 1203)

    def test_dropped_while_the_link_is_away(self, apart: UdpApart) -> None:
        """It is told as soon as the link is back, before what came after (I2)."""
        apart.hands_over()
        apart.away = True
        apart.cut()
        apart.remote.drop_keys("Ib")
        apart.advance(1)
        apart.away = False
        apart.advance(3)
        assert apart.valid() == {}
        apart.hands_over(name="K2")
        assert list(apart.valid()) == ["K2"]

    def test_link_away(self, apart: UdpApart) -> None:
        """Without the link no key is given out, and no terminal is asked to connect. Where UDP is
        not offered there, that cause comes back.
        """
        without = Apart().start()
        adding = without.ask(without.remote.add_key("Ib", NAME, SECRET, 9, 600))
        assert "UDP is not offered by this server" in str(adding.errors[0])
        apart.away = True
        apart.cut()
        adding = apart.ask(apart.remote.add_key("Ib", NAME, SECRET, 9, 600))
        asking = apart.ask(apart.remote.trigger("Ib"))
        apart.advance(1.1)
        assert adding.error is asking.error is ServiceUnavailable
        assert len(apart.remote.replication.keys) == 0

    @pytest.mark.parametrize(
        ("lines", "cause"),
        [
            (f"Key ID:K1\n{KEY}", NO_IDENTIFIER),
            ("Identifier:Ib\nKey ID:K1", NO_KEY),
            (f"Identifier:Ib\n{KEY}", NO_KEY),
            (f"{HANDED}\nPort:{PORT}", "the address is the server's own"),
            (f"Identifier:Ib\nKey ID:K1\nAddress:{HERE[0]}", "Address is not accepted here"),
            ("Identifier:Ib\nUDP:Yes", NO_KEY),
        ],
    )
    def test_wrong(self, apart: UdpApart, lines: str, cause: str) -> None:
        """A mediator that says something else is told so, and nothing is kept."""
        link = apart.resolver.link()
        link.type(f"REGISTER\n{lines}\n\n")
        assert link.text() == f"NOTIFY\nRegistration Failed.\nCause:{cause}\n\n"
        link.type("REQUEST\nConnection Requested.\n\n")
        assert "a REQUEST needs a Callee" in link.text()
        assert apart.valid() == {}

    def test_for_mediators_alone(self, apart: UdpApart) -> None:
        """A terminal hands no key over, drops none and wakes no other (I4, I5)."""
        apart.hands_over()
        stage = Stage(apart)
        stage.registers()
        stage.port.sent.clear()
        stranger = apart.resolver.connect()
        for lines in (
            f"REGISTER\n{HANDED}",
            "REGISTER\nIdentifier:Ib\nUDP:Yes\nExpires:0",
            "REQUEST\nConnection Requested.\nCallee:Ib",
        ):
            stranger.type(f"{lines}\n\n")
            assert "Completed" not in stranger.text()
        assert stage.port.sent == []
        assert (stage.at(), stage.kept()) == (HERE, (1, 1))
