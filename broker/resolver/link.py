"""The mediator's link to a resolver in a process of its own: one connection, pipelined.

The link introduces the mediator, gives each question a deadline, and is cut and made again when
the resolver falls silent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from broker.messages.errors import BadRequest, ServiceUnavailable
from broker.messages.framing import Body
from broker.messages.grammar import NOTIFY, REGISTER
from broker.messages.message import Malformed, Message
from broker.messages.statements import PERMISSION_DENIED, REGISTRATION_COMPLETED, SUPERSEDED
from broker.net.connection import PeerConnection
from broker.net.dialogue import Dialogue
from broker.net.hub import ConnectionHub
from broker.net.reconnecting import ClientEvents, ReconnectingClient
from broker.net.request_task import send_refusal
from broker.net.timers import DeadlineQueue

#: Seconds in which a question must have its answer, the wait for the link included.
ANSWER_SECONDS: Final = 1.0
#: Questions that may wait for their answers (I15).
QUESTIONS_MOST: Final = 10_000
#: The link is cut when nothing came over it for this many seconds after a question.
SILENT_SECONDS: Final = 3.0
#: Seconds between two attempts to connect: the first wait, and the longest.
RETRY_SECONDS: Final = (0.1, 2.0)

# What the log says of the link.
SILENT: Final = "The resolver has fallen silent: reconnecting"
LOST: Final = "The link to the resolver is lost"
REFUSED: Final = "The resolver does not accept this mediator's link: {why}"
NOT_ALLOWED: Final = (
    "its secret differs from ours, or it requires a certificate that it lists,"
    " or it accepts mediators on its own machine only"
)
UNEXPECTED: Final = "The resolver gave an unexpected answer: {answer}"


class LinkQuestion:
    """One question on its way.

    :ivar waiting: what it waits for now: the link, or the answer
    """

    __slots__ = ("waiting",)

    def __init__(self) -> None:
        self.waiting: Deferred[Any] | None = None

    def give_up(self) -> None:
        """End the wait: it fails with ``CancelledError``."""
        if self.waiting is not None:
            self.waiting.cancel()


class LinkEvents(Protocol):
    """What the owner of a link is told."""

    def up(self) -> None:
        """The link is up. The resolver may have forgotten everything."""

    def down(self) -> None:
        """The link is lost."""

    def superseded(self, identifier: str) -> None:
        """An address that went over this link is not in force now."""


class ResolverLink(ClientEvents["LinkDialogue"]):
    """Asks a resolver, and hears what it says unasked.

    :ivar client: keeps the connection
    :ivar questions: those that wait for an answer, or for the link
    """

    log = Logger()

    def __init__(
        self,
        hub: ConnectionHub,
        endpoint: IStreamClientEndpoint,
        events: LinkEvents,
        *,
        jitter: Callable[[], float],
        secret: str | None,
    ) -> None:
        """
        :param jitter: as for a ``ReconnectingClient``
        :param secret: what the resolver requires a mediator to show, if it does
        """
        self.client: ReconnectingClient[LinkDialogue] = ReconnectingClient(
            endpoint,
            hub,
            self,
            jitter=jitter,
            initial=RETRY_SECONDS[0],
            longest=RETRY_SECONDS[1],
            patience=SILENT_SECONDS,
        )
        self.questions: DeadlineQueue[LinkQuestion] = DeadlineQueue(
            hub.clock, ANSWER_SECONDS, self._expired
        )
        self._clock = hub.clock
        self._events = events
        self._secret = secret
        self._unanswered_since = -1.0  # when the oldest question since the last answer was sent
        # Each of these is logged once, until the link is accepted again.
        self._refusal_logged = False
        self._unexpected_logged = False

    def start(self) -> None:
        """Connect, and stay connected."""
        self.client.startService()

    def stop(self) -> Deferred[None]:
        """Close the link and leave no timer behind; fires when it is closed."""
        stopped = self.client.stopService()
        self.questions.stop()
        return stopped

    @property
    def dialogue(self) -> LinkDialogue | None:
        """The dialogue, while the link is up."""
        return self.client.dialogue

    def open_question(self) -> LinkQuestion:
        """Begin a question; from now on its time runs, until ``questions.discard``."""
        question = LinkQuestion()
        self.questions.add(question)
        return question

    def send(self, dialogue: Dialogue, message: Message) -> Deferred[Message]:
        """Send a question; fires with the answer."""
        if self._unanswered_since < 0:
            self._unanswered_since = self._clock.seconds()
        return dialogue.ask(message)

    def unexpected(self, answer: Message) -> ServiceUnavailable:
        """Log an answer of no use; give the error that it amounts to."""
        if not self._unexpected_logged:
            self._unexpected_logged = True
            self.log.warn(UNEXPECTED, answer=answer)
        return ServiceUnavailable()

    # From its dialogue.

    def heard(self) -> None:
        """A message came: the resolver is not silent."""
        self._unanswered_since = -1.0

    def superseded(self, identifier: str) -> None:
        """The resolver says that an address is not in force now."""
        self._events.superseded(identifier)

    # As the events of its client.

    def make_dialogue(self, connection: PeerConnection) -> LinkDialogue:
        """Make what speaks over a new connection."""
        return LinkDialogue(connection, self)

    async def prepare(self, dialogue: LinkDialogue) -> None:
        """Say that this is a mediator, before anything is asked."""
        message = Message(REGISTER, Role="Mediator")
        if self._secret is not None:
            message.fields["Password"] = self._secret
        answer = await dialogue.ask(message)
        if answer.statement == REGISTRATION_COMPLETED:
            self._refusal_logged = self._unexpected_logged = False
            return
        if not self._refusal_logged:
            self._refusal_logged = True
            denied = answer.statement == PERMISSION_DENIED
            self.log.error(REFUSED, why=NOT_ALLOWED if denied else f"it says {answer!r}")
        raise ServiceUnavailable("the resolver refused the link")

    def up(self, dialogue: LinkDialogue) -> None:
        """The link is up."""
        self._events.up()

    def down(self, dialogue: LinkDialogue) -> None:
        """The link is lost."""
        self._events.down()
        if self.client.running:
            self.log.warn(LOST)

    def _expired(self, question: LinkQuestion) -> None:
        silent_since = self._clock.seconds() - SILENT_SECONDS
        if self.dialogue is not None and 0 <= self._unanswered_since <= silent_since:
            self.log.warn(SILENT)
            self.dialogue.stream.abort()
        question.give_up()


class LinkDialogue(Dialogue):
    """What is said over the link."""

    __slots__ = ("_link",)

    def __init__(self, stream: PeerConnection, link: ResolverLink) -> None:
        super().__init__(stream, transactions=True)
        self._link = link

    def message_received(self, message: Message) -> None:
        """An answer came, or a notice; a resolver asks nothing of a mediator."""
        self._link.heard()
        if message.verb != NOTIFY:
            send_refusal(
                self.open_request(message), BadRequest("no request of this kind is known here")
            )
        elif message.transaction is not None:
            self.answered(message)
        elif message.statement == SUPERSEDED and "Identifier" in message.fields:
            self._link.superseded(message.fields["Identifier"])

    def malformed_received(self, malformed: Malformed) -> None:
        """What came is no message; if it was to be an answer, its question gets none."""
        self.malformed(malformed)

    def body_received(self, body: Body) -> None:
        """No answer has a body."""

    def connection_lost(self, reason: Failure) -> None:
        """The link is gone."""
        self.lost(reason)
