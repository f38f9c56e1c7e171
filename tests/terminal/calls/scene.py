"""A caller whose mediator and callee a test plays."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from broker.messages.grammar import NOTIFY
from broker.messages.message import Message
from broker.messages.statements import ADDRESS, REQUEST_ACCEPTED, TERMINATE
from broker.terminal.calls.callee_port import CalleePort
from broker.terminal.calls.one_call import place_call_back, place_one_call
from broker.terminal.calls.place_call import CallContext, dialling_hub, place_call
from broker.terminal.candidates import DIRECT
from broker.terminal.channel.active_calls import ActiveCalls
from broker.terminal.errors import CallFailed
from broker.terminal.registration.client import MediatorClient, dial
from tests.support.clock import result_of
from tests.support.reactor import FakeReactor
from tests.support.transport import Client, connect
from tests.terminal.keys import CALLEE, CALLER, GRANTED, PASSWORD, SESSION, an_answer
from tests.terminal.meeting import WAITS, timers
from tests.terminal.network import HOST, Listener, Network, Outcome
from tests.terminal.peers import Callee, Opener
from tests.terminal.scene import mediator_at
from tests.terminal.speakers import Maker


class Calling:
    """A caller whose mediator and callee a test plays.

    :ivar outcome: what becomes of its call
    :ivar maker: the application's factory
    :ivar asked: what it has asked the mediator
    """

    def __init__(
        self,
        maker: Any = None,
        *,
        how: str = "dials",
        caller: str = CALLER,
        callee: str = CALLEE,
        seen: bool = False,
        sees: str = HOST,
        opener: Opener | None = None,
    ) -> None:
        """
        :param how: it "dials" its callee, "waits" for it besides, or "asks" it to connect back
        :param seen: whether the callee may be told where its line comes from
        :param sees: where the mediator sees it
        """
        self.clock = FakeReactor()
        reactor: Any = self.clock
        dialled = dial(reactor, mediator_at(self.clock), caller)
        self.mediator: Client = self.clock.dials[0].accept(local_host=sees)
        client: MediatorClient = result_of(dialled)
        self.maker: Any = maker or Maker()
        self.calls = ActiveCalls(client)
        self.network = Network(self.clock)
        port = CalleePort(listen=Listener(self.network, WAITS), opener=opener)
        if how == "dials":
            context = CallContext(reactor, client, self.calls, dialling_hub(reactor))
            placing = place_call(context, callee, self.maker, seen=seen)
        elif how == "waits":
            placing = place_one_call(reactor, client, callee, self.maker, port=port)
        else:
            placing = place_call_back(
                reactor, client, callee, self.maker, password=PASSWORD, port=port
            )
        self.outcome = Outcome(Deferred.fromCoroutine(placing))
        (self.asked,) = self.mediator.received()
        if self.asked.statement == ADDRESS:
            self.answer(200, Address=sees, Port="50000")
            (self.asked,) = self.mediator.received()

    def answer(self, code: int, statement: str | None = None, **fields: str) -> Calling:
        """The mediator answers."""
        told = {"Transaction": self.asked.fields["Transaction"], "Code": str(code)}
        told.update({name.replace("_", " "): value for name, value in fields.items()})
        self.mediator.send(
            Message.of(NOTIFY, told if statement is None else {"": statement, **told})
        )
        return self

    def granted(self, **other: str) -> Calling:
        """The mediator gives the credentials (fig. 5d)."""
        self.answer(100, REQUEST_ACCEPTED)
        return self.answer(200, **{**GRANTED, **other})

    def terminate(self, session: str = SESSION) -> None:
        """The mediator says that a session is void."""
        self.mediator.send(Message.of(NOTIFY, {"Session": session, "": TERMINATE}))

    def reached(self) -> Callee:
        """A peer answers at the callee's address."""
        return Callee(self.clock.dials[1].accept())

    def connects(self, sent: Message | bytes, host: str = HOST) -> Client:
        """A peer connects to where it waits, and says something."""
        factory = self.network.factory_at(WAITS)
        client = connect(factory, self.clock, port=WAITS, peer_host=host)
        client.send(sent)
        return client

    def arrives(self, session: str = SESSION, host: str = HOST) -> Client:
        """A peer connects to where it waits, and says for which session."""
        return self.connects(Message(NOTIFY, Session=session), host)

    def stands(self, way: str) -> Callee:
        """The callee is reached or arrives, and accepts."""
        callee = self.reached() if way == DIRECT else Callee(self.arrives())
        return callee.answer(an_answer())

    @property
    def dials(self) -> list[tuple[str, int]]:
        """Where it has dialled, without the mediator."""
        return [(dial.host, dial.port) for dial in self.clock.dials[1:]]

    @property
    def failure(self) -> str:
        """Why it failed, in words."""
        assert isinstance(self.outcome.error, CallFailed)
        return str(self.outcome.error)

    @property
    def ends(self) -> list[tuple[str | None, str | None]]:
        """What the mediator was told of how sessions ended, since this was asked last."""
        told = [one for one in self.mediator.received() if "End" in one.fields]
        return [(one.get("Session"), one.get("End")) for one in told]

    @property
    def at_rest(self) -> bool:
        """Whether nothing is dialled or waited for, and no timer is left."""
        self.clock.advance(0)
        waits = self.network.listens(WAITS)
        return all(dial.over for dial in self.clock.dials) and not waits and not timers(self.clock)
