"""Registration by UDP: who is believed, what a stranger can do (broker.resolver.udp_registrar)."""

from __future__ import annotations

import random
import tracemalloc
from dataclasses import replace
from math import inf
from typing import ClassVar

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
NAME = "K" + "a" * 22
SECRET = bytes(range(32))
WALL = 1_800_000_000


def registration(
    sequence: int, *, key: bytes = SECRET, name: str = NAME, **fields: object
) -> bytes:
    """A signed ``REGISTER``; the sequence stands last, where nothing else is said."""
    message = Message("REGISTER", Identifier=str(fields.pop("identifier", "Ib")))
    message.fields["Key ID"] = name
    last = fields.pop("then", None)
    for field, value in fields.items():
        message.fields[field] = str(value)
    message.fields["Sequence"] = str(sequence)
    if last is not None:
        message.fields["Port"] = str(last)
    return sign(message, key)


class Stage:
    """A registrar, and the network around it.

    :ivar port: the port that it is spoken to at
    """

    def __init__(self) -> None:
        self.clock = FakeReactor()
        self.wall = float(WALL)
        self.registrar = UdpRegistrar(
            self.clock, random.Random(1).randbytes, wall=lambda: self.wall
        )
        self.port: FakeDatagramPort = self.clock.listenUDP(1200, self.registrar)

    def key(self, name: str = NAME, whose: str = "Ib", **more: object) -> UdpKey:
        """A key that a mediator hands over."""
        secret = more.get("secret", SECRET)
        assert isinstance(secret, bytes)
        key = UdpKey(name, whose, secret, 1203, 600)
        self.registrar.add_key(key)
        kept = self.registrar.keys.get(name, 0)
        assert kept is not None
        return kept

    def says(self, datagram: bytes, source: tuple[str, int] = HERE) -> Message | None:
        """A datagram arrives; what is answered, which is no more than one, and no longer (I13)."""
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

    def registers(
        self, sequence: int = 1, source: tuple[str, int] = HERE, **more: object
    ) -> Message | None:
        """A terminal registers from a source that is new, and shows that it reads there."""
        challenge = self.says(registration(sequence, **more), source)  # type: ignore[arg-type]
        assert challenge is not None
        more["Challenge"] = challenge.fields["Challenge"]
        return self.says(registration(sequence, **more), source)  # type: ignore[arg-type]

    def at(self, whose: str = "Ib") -> tuple[str, int] | None:
        """Where a terminal's datagrams come from."""
        for key in reversed(self.registrar.keys.of(whose, self.clock.seconds())):
            mapping = self.registrar.mappings.of(key, self.clock.seconds())
            if mapping is not None:
                return mapping.source
        return None

    def silent(self, datagram: bytes, source: tuple[str, int] = HERE) -> None:
        """It is passed over, and only counted."""
        before = self.registrar.counts["datagrams ignored"]
        assert self.says(datagram, source) is None
        assert self.registrar.counts["datagrams ignored"] == before + 1

    def notices(self) -> list[tuple[Message, tuple[str, int]]]:
        """What was sent unasked since this was last looked at, each signed."""
        sent = list(self.port.sent)
        self.port.sent.clear()
        return [(parse_datagram(data), to) for data, to in sent]


@pytest.fixture
def stage() -> Stage:
    """A registrar that has a key of Ib's."""
    stage = Stage()
    stage.key()
    return stage


@pytest.fixture
def known(stage: Stage) -> Stage:
    """One where Ib is registered, and has sent a keepalive; the next sequence is 3."""
    assert stage.registers() is not None
    assert stage.says(registration(2)) is not None
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

    def test_shortest_question(self) -> None:
        """Also to the shortest question there is, the challenge is no longer (I13)."""
        stage = Stage()
        stage.key(whose="I")
        assert stage.says(registration(1, identifier="I"), V6) is not None

    def test_no_room_for_a_challenge(self) -> None:
        """Where the question is shorter, since its Key ID is, there is none."""
        stage = Stage()
        stage.key("K", "I")
        assert stage.says(registration(1, name="K", identifier="I")) is None

    def test_keepalive(self, known: Stage) -> None:
        """From the source that is known it is answered at once, however often."""
        for sequence in (3, 4, 9, 10, 999, 1000, 10**14):
            answer = known.answer(registration(sequence))
            assert answer.fields["Sequence"] == str(sequence)
            assert verify(known.port.sent[0][0], SECRET)
        assert known.registrar.counts["mappings made"] == 1

    def test_first_keepalive_in_other_words(self, stage: Stage) -> None:
        """The words may change: they are then read anew, and need no challenge (D1)."""
        stage.registers()
        for sequence in range(2, 8):
            assert stage.says(registration(sequence, Expires=50 + sequence // 3)) is not None
        assert stage.says(registration(8, then=9)) is not None
        assert stage.says(registration(9, then=9)) is not None
        assert stage.registrar.counts["challenges"] == 1

    def test_moves(self, known: Stage) -> None:
        """Another source is challenged first; then it is there, and no more where it was (D1)."""
        challenge = known.answer(registration(3), THERE)
        assert known.at() == HERE
        moved = registration(4, Challenge=challenge.fields["Challenge"])
        assert known.says(moved, THERE) is not None
        assert known.at() == THERE
        assert known.registrar.counts["mappings moved"] == 1
        assert known.says(registration(5), HERE) is not None  # a challenge
        assert known.at() == THERE

    def test_until_it_moves_it_stays(self, known: Stage) -> None:
        """A challenge not answered changes nothing: the old source goes on (I12)."""
        known.says(registration(7), THERE)
        answer = known.answer(registration(3))
        assert answer.statement == "Registration Completed."

    def test_two_keys_at_one_source(self, known: Stage) -> None:
        """A terminal that has logged in again is known at the same source by its new key."""
        other = "K" + "b" * 22
        known.key(other, secret=bytes(32))
        assert known.registers(1, name=other, key=bytes(32)) is not None
        assert known.at() == HERE
        assert len(known.registrar.mappings) == 1

    def test_behind_one_router(self, stage: Stage) -> None:
        """Terminals at one address, behind one router, are told apart by their ports."""
        stage.key("K" + "c" * 22, "Ic", secret=bytes(32))
        stage.registers()
        more = {"name": "K" + "c" * 22, "key": bytes(32), "identifier": "Ic"}
        stage.registers(1, (HERE[0], 4001), **more)
        assert (stage.at("Ib"), stage.at("Ic")) == (HERE, (HERE[0], 4001))


class ForgedTests:
    """What is not proven changes nothing, and is not answered (I4, I5, I10, I12, I13)."""

    FORGED: ClassVar = {
        "no signature": registration(3)[:-78] + b"\r\n",
        "another's key": registration(3, key=bytes(32)),
        "an unknown key": registration(3, name="K" + "z" * 22),
        "another's identifier": registration(3, identifier="Ic"),
        "no key": sign(Message("REGISTER", Identifier="Ib", Sequence=3), SECRET),
        "no sequence": registration(3).replace(b"Sequence:3\r\n", b""),
        "a sequence that was": registration(2),
        "a sequence before that": registration(1),
        "a negative one": registration(-3),
        "one of too many digits": registration(10**15),
        "other digits": sign(
            Message("REGISTER", Identifier="Ib", Key_ID=NAME, Sequence="٣"), SECRET
        ),
        "bare, as in the documents": b"REGISTER\r\nIdentifier:Ib\r\n\r\n",
        "a notice of ours": sign(
            Message("NOTIFY", "Connection Requested.", Identifier="Ib", Key_ID=NAME, Sequence=3),
            SECRET,
        ),
        "another verb": sign(Message("QUERY", Key_ID=NAME, Identifier="Ib", Sequence=3), SECRET),
        "a statement": sign(
            Message("REGISTER", "STATUS", Key_ID=NAME, Identifier="Ib", Sequence=3), SECRET
        ),
        "a body": registration(3, Length=4),
        "no message": sign(Message("REGISTER", Key_ID=NAME, Identifier="", Sequence=3), SECRET),
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
        """Whoever it comes from: silence, a count, and the next keepalive is taken as before."""
        mapping = known.registrar.mappings.at(HERE)
        assert mapping is not None
        until = mapping.until
        known.clock.advance(1)
        known.silent(self.FORGED[case], source)
        assert known.at() == HERE
        assert (mapping.key.last_received, mapping.until) == (2, until)
        assert len(known.registrar.mappings) == 1
        assert known.says(registration(3)) is not None

    def test_replayed(self, known: Stage) -> None:
        """Whatever was heard before, challenged or answered, is nothing the second time (I10)."""
        keepalive = registration(3)
        assert known.says(keepalive) is not None
        for source in (HERE, THERE):
            known.silent(keepalive, source)

    def test_caught_on_its_way(self, known: Stage) -> None:
        """Whoever catches a datagram, and sends it from elsewhere, gets a challenge of no use.

        It can't sign what would answer it (I12).
        """
        caught = registration(3)
        challenge = known.answer(caught, THERE)
        cookie = challenge.fields["Challenge"]
        known.silent(registration(4, key=bytes(32), Challenge=cookie), THERE)
        assert known.at() == HERE

    def test_cookie_of_another_source(self, known: Stage) -> None:
        """Nor does one that was made for another source help (I12)."""
        challenge = known.answer(registration(3), THERE)
        answer = known.answer(registration(4, Challenge=challenge.fields["Challenge"]), V6)
        assert "Challenge" in answer.fields
        assert known.at() == HERE

    def test_challenge_does_not_use_up(self, stage: Stage) -> None:
        """The sequence advances only when the datagram is accepted: not by a challenge."""
        key = stage.registrar.keys.get(NAME, 0)
        assert key is not None
        stage.says(registration(5))
        assert key.last_received == -1
        assert stage.registers(5) is not None
        assert key.last_received == 5

    @pytest.mark.parametrize(
        "source",
        [
            ("0.0.0.0", 4000),
            ("255.255.255.255", 4000),
            ("224.0.0.1", 4000),
            ("ff02::1", 4000),
            ("fe80::1", 4000),
            ("::", 4000),
            ("192.0.2.1", 0),
        ],
    )
    def test_where_nobody_is(self, stage: Stage, source: tuple[str, int]) -> None:
        """Where no terminal can be none is registered (I12)."""
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
        assert (len(known.registrar.mappings), len(known.registrar.keys)) == (1, 1)

    def test_challenged_leaves_nothing(self, known: Stage) -> None:
        """Nor does one that is signed, and comes from ever new sources (I14)."""
        for n in range(500):
            known.says(registration(3 + n), ("10.0.0.1", 1000 + n))
        assert len(known.registrar.mappings) == 1
        assert known.at() == HERE


class LastingTests:
    """For how long it is believed where a terminal is (I10)."""

    def test_expires(self, known: Stage) -> None:
        """Without keepalives, as long as usual."""
        known.clock.advance(BINDING_SECONDS - 0.1)
        assert known.at() == HERE
        known.clock.advance(0.1)
        assert known.at() is None
        assert known.registrar.seen("Ib") is None
        assert known.registrar.notify("Ib") is False

    def test_named(self, stage: Stage) -> None:
        """Or as long as it has named."""
        stage.registers(Expires=75)
        stage.clock.advance(74.9)
        assert stage.says(registration(2, Expires=75)) is not None
        assert stage.says(registration(3, Expires=75)) is not None
        stage.clock.advance(74.9)
        assert stage.at() == HERE
        stage.clock.advance(0.1)
        assert stage.at() is None

    def test_signs_off(self, known: Stage) -> None:
        """With ``Expires:0`` it is gone at once."""
        assert known.says(registration(3, Expires=0)) is not None
        assert known.at() is None

    def test_back_after_that(self, known: Stage) -> None:
        """Who was silent for too long shows anew that it reads there, from the same source too."""
        known.clock.advance(BINDING_SECONDS)
        answer = known.answer(registration(3))
        assert "Challenge" in answer.fields
        assert known.at() is None

    def test_key_released(self, known: Stage) -> None:
        """A key outlives its connection by its expiry, and is no longer answered then."""
        known.registrar.keys.release(NAME, 0)
        known.clock.advance(100)
        for sequence in range(3, 7):
            assert known.says(registration(sequence, Expires=600)) is not None
        known.clock.advance(499.9)
        assert known.at() == HERE
        known.clock.advance(0.1)
        assert known.at() is None
        known.silent(registration(9, Expires=600))

    def test_place_ends_with_its_key(self, stage: Stage) -> None:
        """What is told of it holds for no longer either (I10)."""
        stage.registers(Expires=3000)
        place = stage.registrar.seen("Ib")
        assert place is not None
        assert place.until == 3000
        stage.registrar.keys.release(NAME, 0)
        place = stage.registrar.seen("Ib")
        assert place is not None
        assert place.until == 600

    def test_keys_dropped(self, known: Stage) -> None:
        """Where none of its keys is good any more, nothing of it is left, at once (I2)."""
        known.registrar.drop_keys("Ib")
        assert known.registrar.seen("Ib") is None
        assert not known.registrar.notify("Ib")
        known.silent(registration(3))
        assert (len(known.registrar.keys), len(known.registrar.mappings)) == (0, 0)

    def test_sixth_key(self, known: Stage) -> None:
        """The key that a sixth one drops is answered no more, though its source is known (I2)."""
        for n in range(KEYS_AN_IDENTIFIER):
            known.key(f"K{n}")
        known.silent(registration(3))
        assert known.registrar.seen("Ib") is None

    def test_told_again(self, known: Stage) -> None:
        """A key that a mediator tells again is as it was: mapping, sequences and all."""
        known.registrar.notify("Ib")
        known.key()
        assert known.at() == HERE
        known.silent(registration(2))
        assert known.says(registration(3)) is not None

    def test_swept(self, known: Stage) -> None:
        """What has expired is forgotten in time (I15)."""
        known.registrar.keys.release(NAME, 0)
        known.clock.pump([PRUNE_INTERVAL] * 3)
        assert (len(known.registrar.mappings), len(known.registrar.keys)) == (0, 1)
        known.clock.pump([PRUNE_INTERVAL] * 10)
        assert len(known.registrar.keys) == 0

    def test_ends(self, known: Stage) -> None:
        """With its port it leaves no timer behind."""
        known.port.stopListening()
        assert known.clock.getDelayedCalls() == []


class AddressTests:
    """What one looks like from outside (E1)."""

    @staticmethod
    def question(*lines: str, octets: int = PADDED) -> bytes:
        """``QUERY`` / ``ADDRESS``, so long."""
        head = "".join(f"{line}\r\n" for line in ("QUERY", "ADDRESS", *lines)) + "Padding:"
        return f"{head}{'x' * (octets - len(head) - 4)}\r\n\r\n".encode()

    @pytest.mark.parametrize(
        ("source", "host"),
        [
            (HERE, "192.0.2.1"),
            (V6, "2001:db8::7"),
            (("::ffff:192.0.2.1", 6000), "192.0.2.1"),
        ],
    )
    def test_told(self, stage: Stage, source: tuple[str, int], host: str) -> None:
        """Address and port that the question came from; anybody may ask."""
        answer = stage.says(self.question(), source)
        assert answer == Message("NOTIFY", Address=host, Port=source[1])

    def test_transaction(self, stage: Stage) -> None:
        """And brings the transaction back."""
        answer = stage.answer(self.question("Transaction:7"))
        assert answer.masked()[3:] == ["Transaction:7", "Code:200"]

    def test_short(self, stage: Stage) -> None:
        """What is shorter than an answer may be gets none (I13)."""
        assert stage.says(self.question(octets=PADDED)) is not None
        stage.silent(self.question(octets=PADDED - 1))
        source = ("2001:db8:1111:2222:3333:4444:5555:6666", 65535)
        asked = self.question("Transaction:" + "t" * 64, octets=PADDED)
        assert stage.says(asked, source) is None

    def test_of_nobody_else(self, stage: Stage) -> None:
        """No other question is answered, however long (I1)."""
        for verb in ("QUERY\r\nLOOKUP\r\nCallee:Ib", "QUERY\r\nSTATUS", "REQUEST\r\nADDRESS"):
            stage.silent(f"{verb}\r\nPadding:{'x' * 200}\r\n\r\n".encode())


class NoticeTests:
    """A terminal is told to connect (fig. 8a, E1, E3)."""

    def test_told(self, known: Stage) -> None:
        """Where its datagrams come from; it says for whom it is and nothing of who asks (I26)."""
        known.port.sent.clear()
        assert known.registrar.notify("Ib") is True
        assert verify(known.port.sent[0][0], SECRET)
        [(notice, to)] = known.notices()
        assert to == HERE
        assert notice.masked()[:4] == [
            "NOTIFY",
            "Connection Requested.",
            "Identifier:Ib",
            f"Key ID:{NAME}",
        ]
        assert list(notice.fields)[3:] == ["Sequence", "Signature"]

    def test_sequence(self, known: Stage) -> None:
        """Each is later than all before, also where the resolver has been started anew (E3)."""
        known.port.sent.clear()
        for _ in range(50):
            known.registrar.notify("Ib")
            known.clock.advance(NOTICE_INTERVAL + 0.01)
        told = [int(notice.fields["Sequence"]) for notice, _ in known.notices()]
        assert told == sorted(set(told))
        assert len(told) == 50
        again = Stage()
        again.wall = WALL + 1
        again.key()
        again.registers()
        again.port.sent.clear()
        again.registrar.notify("Ib")
        [(notice, _)] = again.notices()
        assert told[-1] < int(notice.fields["Sequence"]) < 10**15

    def test_not_often(self, known: Stage) -> None:
        """However often it is asked for, so many go along one way and no more (I17)."""
        known.port.sent.clear()
        for _ in range(100):
            assert known.registrar.notify("Ib")
            known.clock.advance(0.01)
        assert len(known.notices()) == 1 / NOTICE_INTERVAL

    def test_along_each(self, known: Stage) -> None:
        """Along each way that it has; not where it no longer is."""
        other = "K" + "b" * 22
        known.key(other, secret=bytes(32))
        known.registers(1, THERE, name=other, key=bytes(32), Expires=10)
        known.port.sent.clear()
        known.registrar.notify("Ib")
        assert [to for _, to in known.notices()] == [HERE, THERE]
        known.clock.advance(10)
        known.registrar.notify("Ib")
        assert [to for _, to in known.notices()] == [HERE]

    def test_nobody(self, stage: Stage) -> None:
        """Where no datagram came from it, or nobody is called so, nothing goes out."""
        stage.port.sent.clear()
        assert stage.registrar.notify("Ib") is False
        assert stage.registrar.notify("Ix") is False
        assert stage.notices() == []

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

    def test_seen(self, known: Stage) -> None:
        """The host that was seen, and the port that the key was got for; never to be dialled."""
        place = result_of(self.resolver(known).lookup("Ib"))
        told = place.contact
        assert (told.host, told.port, told.dialable) == ("192.0.2.1", 1203, False)
        assert place.until == BINDING_SECONDS

    def test_in_clothing(self, stage: Stage) -> None:
        """An IPv4 address that came in over IPv6 is told as what it is."""
        stage.registers(source=("::ffff:192.0.2.1", 4000))
        place = result_of(self.resolver(stage).lookup("Ib"))
        assert place.contact.host == "192.0.2.1"

    def test_registered_address_wins(self, known: Stage) -> None:
        """A terminal is where it says that it is, and for as long as that holds."""
        resolver = self.resolver(known)
        address = Contact("192.0.2.99", 7, 0, 5)
        result_of(resolver.register("Ib", address))
        assert result_of(resolver.lookup("Ib")).contact is address
        resolver.release("Ib", address)
        known.clock.advance(5)
        assert result_of(resolver.lookup("Ib")).contact.host == "192.0.2.1"

    def test_kept(self, known: Stage) -> None:
        """What was seen was not registered, and would not be put back."""
        with pytest.raises(CalleeNotFound):
            result_of(self.resolver(known).registered_binding("Ib"))

    def test_key(self) -> None:
        """A key that is handed over is good until it is released, then for its expiry."""
        stage = Stage()
        resolver = self.resolver(stage)
        result_of(resolver.add_key("Ib", NAME, SECRET, 9, 60))
        assert stage.registers() is not None
        stage.clock.advance(100)
        resolver.release_key("Ib", NAME)
        stage.clock.advance(59)
        assert stage.registers(2) is not None
        assert result_of(resolver.lookup("Ib")).contact.port == 9
        assert result_of(resolver.trigger("Ib")) is True
        resolver.drop_keys("Ib")
        assert result_of(resolver.trigger("Ib")) is False

    def test_refused(self, stage: Stage) -> None:
        """A name that means another key is refused."""
        with pytest.raises(RegistrationFailed, match="another key"):
            result_of(self.resolver(stage).add_key("Ic", NAME, SECRET, 9, 60))

    def test_not_offered(self) -> None:
        """Where there is no port for datagrams no key is taken, and nobody is found so."""
        resolver = LocalResolver(FakeReactor())
        with pytest.raises(RegistrationFailed, match="UDP is not offered by this server"):
            result_of(resolver.add_key("Ib", NAME, SECRET, 9, 60))
        resolver.release_key("Ib", NAME)
        resolver.drop_keys("Ib")
        assert result_of(resolver.trigger("Ib")) is False


class ApartTests:
    """A resolver in a process of its own: keys and requests go over the link."""

    @pytest.fixture
    def apart(self) -> Apart:
        """A mediator's resolver apart, with a registrar there, and the link up."""
        apart = Apart(udp=True)
        return apart.start()

    @staticmethod
    def terminal(apart: Apart) -> Stage:
        """The network around the registrar that is there now."""
        stage = Stage.__new__(Stage)
        registrar = apart.resolver.local.registrar
        assert registrar is not None
        stage.clock, stage.registrar, stage.port = (
            apart.clock,
            registrar,
            apart.clock.listenUDP(1200, registrar),
        )
        return stage

    def test_whole_way(self, apart: Apart) -> None:
        """Handed over, registered by UDP, looked up, asked to connect, dropped."""
        apart.done(apart.remote.add_key("Ib", NAME, SECRET, 9, 600))
        stage = self.terminal(apart)
        assert stage.registers() is not None
        place = apart.ask(apart.remote.lookup("Ib")).value
        told = place.contact
        assert (told.host, told.port, told.dialable) == ("192.0.2.1", 9, False)
        assert place.until - apart.clock.seconds() == BINDING_SECONDS
        assert apart.ask(apart.remote.registered_binding("Ib")).error is CalleeNotFound
        stage.port.sent.clear()
        assert apart.ask(apart.remote.trigger("Ib")).value is True
        [(notice, to)] = stage.notices()
        assert (notice.statement, to) == ("Connection Requested.", HERE)
        apart.remote.drop_keys("Ib")
        apart.pump()
        assert apart.ask(apart.remote.trigger("Ib")).value is False
        assert apart.ask(apart.remote.lookup("Ib")).error is CalleeNotFound

    def test_what_goes_over_the_link(self, apart: Apart) -> None:
        """The messages, whose key no trace shows (I18)."""
        apart.heard()
        apart.done(apart.remote.add_key("Ib", NAME, SECRET, 9, 600))
        apart.ask(apart.remote.trigger("Ib"))
        apart.remote.release_key("Ib", NAME)
        apart.remote.drop_keys("Ib")
        apart.pump()
        handed = ["REGISTER", "Identifier:Ib", "Port:9", "Expires:600"]
        handed += [f"Key ID:{NAME}", "Registration Key:…"]
        assert apart.heard() == [
            handed,
            ["REQUEST", "Connection Requested.", "Callee:Ib"],
            handed,
            ["REGISTER", "Identifier:Ib", "UDP:Yes", "Expires:0"],
        ]

    def test_told_again(self, apart: Apart) -> None:
        """A resolver that has forgotten everything is told what holds: of open connections' keys
        all, of others what is left.
        """
        apart.done(apart.remote.add_key("Ib", NAME, SECRET, 9, 600))
        apart.done(apart.remote.add_key("Ic", "K2", bytes(32), 9, 600))
        apart.remote.release_key("Ic", "K2")
        apart.advance(10)
        apart.restart()
        apart.advance(3)
        table = apart.resolver.local.registrar
        assert table is not None
        now = apart.clock.seconds()
        kept = {key.name: round(key.until - now, -1) for key in table.keys}
        assert kept == {NAME: 600, "K2": 590}

    def test_held_for_long(self, apart: Apart) -> None:
        """A key whose connection is open stays good, however long; then for its expiry."""
        apart.done(apart.remote.add_key("Ib", NAME, SECRET, 9, 600))
        apart.pass_by(3600, 10)
        registrar = apart.resolver.local.registrar
        assert registrar is not None
        assert registrar.keys.get(NAME, apart.clock.seconds()) is not None
        apart.remote.release_key("Ib", NAME)
        apart.pass_by(590, 10)
        assert registrar.keys.get(NAME, apart.clock.seconds()) is not None
        apart.pass_by(20, 10)
        assert registrar.keys.get(NAME, apart.clock.seconds()) is None
        apart.pass_by(120, 10)
        assert len(apart.remote.replication.keys) == 0

    def test_beside_an_address(self, apart: Apart) -> None:
        """A terminal with an address and a key has both told again, each as it holds."""
        apart.done(apart.remote.register("Ib", an_address(apart.clock, expires=3600)))
        apart.done(apart.remote.add_key("Ib", NAME, SECRET, 9, 60))
        apart.pass_by(600, 5)
        apart.restart()
        apart.advance(3)
        registrar = apart.resolver.local.registrar
        assert registrar is not None
        assert registrar.keys.get(NAME, apart.clock.seconds()) is not None
        assert apart.resolver.told("Ib") == ("127.0.0.1", 1203)

    def test_dropped_while_the_link_is_away(self, apart: Apart) -> None:
        """It is told as soon as the link is back, before what came after (I2)."""
        apart.done(apart.remote.add_key("Ib", NAME, SECRET, 9, 600))
        registrar = apart.resolver.local.registrar
        assert registrar is not None
        apart.away = True
        apart.cut()
        apart.remote.drop_keys("Ib")
        apart.advance(1)
        apart.away = False
        apart.advance(3)
        assert registrar.keys.of("Ib", apart.clock.seconds()) == ()
        apart.done(apart.remote.add_key("Ib", "K2", SECRET, 9, 600))
        assert [key.name for key in registrar.keys.of("Ib", apart.clock.seconds())] == ["K2"]

    def test_link_away(self) -> None:
        """Without the link no key is given out, and nobody is asked to connect."""
        apart = Apart(udp=True)
        apart.away = True
        apart.start()
        adding = apart.ask(apart.remote.add_key("Ib", NAME, SECRET, 9, 600))
        asking = apart.ask(apart.remote.trigger("Ib"))
        apart.advance(1.1)
        assert adding.error is ServiceUnavailable
        assert asking.error is ServiceUnavailable
        assert len(apart.remote.replication.keys) == 0

    def test_not_offered_there(self) -> None:
        """The cause comes back."""
        apart = Apart().start()
        adding = apart.ask(apart.remote.add_key("Ib", NAME, SECRET, 9, 600))
        assert "UDP is not offered by this server" in str(adding.errors[0])

    @pytest.mark.parametrize(
        ("lines", "cause"),
        [
            (["Key ID:K1", f"Registration Key:{SECRET.hex()}"], NO_IDENTIFIER),
            (["Identifier:Ib", "Key ID:K1"], NO_KEY),
            (
                ["Identifier:Ib", f"Registration Key:{SECRET.hex()}"],
                NO_KEY,
            ),
            (
                ["Identifier:Ib", "Key ID:K1", f"Registration Key:{SECRET.hex()}", f"Port:{PORT}"],
                "the address is the server's own",
            ),
            (
                ["Identifier:Ib", "Key ID:K1", "Address:192.0.2.1"],
                "Address is not accepted here",
            ),
            (["Identifier:Ib", "UDP:Yes"], NO_KEY),
        ],
    )
    def test_wrong(self, apart: Apart, lines: list[str], cause: str) -> None:
        """A mediator that says something else is told so, and nothing is kept."""
        link = apart.resolver.link()
        link.type("\n".join(["REGISTER", *lines, "", ""]))
        assert link.text() == f"NOTIFY\nRegistration Failed.\nCause:{cause}\n\n"
        registrar = apart.resolver.local.registrar
        assert registrar is not None
        assert len(registrar.keys) == 0

    def test_for_mediators_alone(self, apart: Apart) -> None:
        """A terminal hands no key over, drops none and wakes nobody (I4, I5)."""
        apart.done(apart.remote.add_key("Ib", NAME, SECRET, 9, 600))
        stage = self.terminal(apart)
        stage.registers()
        stage.port.sent.clear()
        stranger = apart.resolver.connect()
        for lines in (
            ["REGISTER", "Identifier:Ib", "Key ID:K1", f"Registration Key:{SECRET.hex()}"],
            ["REGISTER", "Identifier:Ib", "UDP:Yes", "Expires:0"],
            ["REQUEST", "Connection Requested.", "Callee:Ib"],
        ):
            stranger.type("\n".join([*lines, "", ""]))
            assert "Completed" not in stranger.text()
        assert stage.notices() == []
        assert stage.at() == HERE
        assert len(stage.registrar.keys) == 1

    def test_no_callee(self, apart: Apart) -> None:
        """A request for a connection names whom to ask."""
        link = apart.resolver.link()
        link.type("REQUEST\nConnection Requested.\n\n")
        assert "a REQUEST needs a Callee" in link.text()


def test_replace_keeps_secrets() -> None:
    """A copy of a key shows no more than the key (I18)."""
    assert "secret" not in repr(
        replace(UdpKey("K1", "Ia", b"secret" * 5, 1, 1), last_sent=1, until=inf)
    )
