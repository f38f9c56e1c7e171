"""One peer's dialogue: its requests and our replies in order, our questions and its answers.

Replies without a transaction leave in the order of their requests; those with one leave when they
are ready; what we send unasked never waits behind a reply.
"""

from __future__ import annotations

from typing import Protocol

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure

from broker.messages.grammar import NOTIFY, STATEMENT
from broker.messages.message import Malformed, Message
from broker.messages.statements import BAD_MESSAGE, CODES, TOO_LARGE
from broker.net.connection import PeerConnection
from broker.net.tls.errors import TlsFailed


class Cancellable(Protocol):
    """A task or a Deferred: what can be given up."""

    def cancel(self) -> object:
        """Give up."""


class Request:
    """One request of a peer, and how its replies go back.

    :ivar message: the request itself
    :ivar done: it has had its last reply
    :ivar queued: replies that are queued behind those of earlier requests; ``None`` once they may
        leave at once
    :ivar transaction: the token that its replies carry, ``None`` where they must keep their order
    :ivar work: what serves the request, if that waits for something; it is cancelled when the peer
        goes before the last reply
    """

    __slots__ = ("_dialogue", "_next", "done", "message", "queued", "transaction", "work")

    def __init__(self, dialogue: Dialogue, message: Message) -> None:
        self.message = message
        self.transaction = message.fields.get("Transaction")
        self.done = False
        self.work: Cancellable | None = None
        self.queued: list[Message] | None = None
        self._dialogue = dialogue
        self._next: Deferred[None] | None = None

    async def until_next(self) -> None:
        """Wait until a reply would leave at once: for what may be told only if it is true then.

        Cancelling does not end the wait, unless the peer has gone.

        :raises CancelledError: it has
        """
        while self.queued is not None:
            self._next = Deferred()
            try:
                await self._next
            except CancelledError:
                if self.done:
                    raise

    def now_next(self) -> None:
        """The replies of all earlier requests have left."""
        waiting, self._next = self._next, None
        if waiting is not None:
            waiting.callback(None)

    def reply(
        self,
        statement: str,
        fields: dict[str, str] | None = None,
        *,
        more: bool = False,
        code: int = 0,
    ) -> None:
        """Answer; the last answer is the one without ``more``.

        :param statement: the figure's statement, or the empty text where it has none
        :param fields: more lines. A bare reply must look as in the figure: the caller
            leaves out what the figure does not show (``Request.bare``).
        :param code: the code, where the statement does not imply it
        """
        if self.done:
            return
        connection = self._dialogue.stream
        transaction = self.transaction
        if fields is None and self.queued is None and connection.untraced:
            # Most replies: a bare statement that leaves at once. Encoding it here, without a
            # ``Message``, saves a thirtieth of a call.
            text = f"{NOTIFY}\r\n{statement}\r\n"
            if transaction is not None:
                text += f"Transaction:{transaction}\r\nCode:{code or CODES[statement]}\r\n"
            connection.write(f"{text}\r\n".encode())
        else:
            fields = fields or {}
            lines = {STATEMENT: statement, **fields} if statement else fields
            message = Message.of(NOTIFY, lines)
            if transaction is not None:
                lines["Transaction"] = transaction
                lines["Code"] = str(code or CODES[statement])
            if self.queued is not None:
                self.queued.append(message)
                self.done = not more
                return
            connection.send(message)
        if not more:
            self.done = True
            self._dialogue.settle(self)

    @property
    def bare(self) -> bool:
        """Whether replies must look exactly as in the figures."""
        return self.transaction is None


class Dialogue:
    """What is open between us and one peer.

    :ivar stream: the connection
    :ivar transactions: the peer has used a transaction itself, and so understands ours
    """

    __slots__ = (
        "_bare",
        "_ending",
        "_passing_on",
        "_questions",
        "_requests",
        "_serial",
        "stream",
        "transactions",
    )

    def __init__(self, stream: PeerConnection, *, transactions: bool = False) -> None:
        self.stream = stream
        self.transactions = transactions
        # Collections exist only while there is something in them: an idle terminal costs memory.
        self._requests: dict[Request, None] | None = None  # without their last reply, in order
        self._bare = 0  # how many of them have no transaction
        self._questions: dict[str, Deferred[Message]] | None = None
        self._serial = 0
        self._ending = False
        self._passing_on = False

    # The peer's requests.

    def open_request(self, message: Message) -> Request:
        """Take a request in; it keeps its place among the replies until it is done."""
        request = Request(self, message)
        if request.transaction is None:
            if self._bare:
                request.queued = []
            self._bare += 1
        else:
            self.transactions = True
        if self._requests is None:
            self._requests = {request: None}
        else:
            self._requests[request] = None
        if len(self._requests) >= self.stream.decoder.limits.outstanding:
            self.stream.hold()
        return request

    @property
    def outstanding(self) -> int:
        """Requests that have not had their last reply."""
        return len(self._requests) if self._requests is not None else 0

    def settle(self, request: Request) -> None:
        """A request has had its last reply: send those that were queued behind it."""
        requests = self._requests
        if requests is not None and request in requests:
            del requests[request]
            if not requests:
                self._requests = None
            if request.transaction is None:
                self._bare -= 1
                if self._bare and not self._passing_on:
                    self._pass_on()
        self.stream.go_on()
        if self._ending:
            self._close_when_answered()

    def _pass_on(self) -> None:
        """Send the queued replies of the next bare request, and of those after it that are done.

        A request that learns that it is next may be done at once. Then this loop goes on; without
        ``_passing_on`` each such request would add a level of recursion.
        """
        while self._bare:
            requests = self._requests or ()
            first = next(request for request in requests if request.transaction is None)
            queued = first.queued or ()
            first.queued = None
            for message in queued:
                self.stream.send(message)
            if not first.done:
                self._passing_on = True
                first.now_next()
                self._passing_on = False
                if not first.done:
                    return
            if self._requests is not None and self._requests.pop(first, first) is None:
                self._bare -= 1
                if not self._requests:
                    self._requests = None

    def malformed(self, malformed: Malformed) -> None:
        """Say what is wrong with what came, in its place among the replies."""
        if malformed.fatal:
            self._ending = True
        if not malformed.silent:
            message = Message("")
            if malformed.transaction is not None:
                message.fields["Transaction"] = malformed.transaction
            statement = TOO_LARGE if malformed.too_large else BAD_MESSAGE
            self.open_request(message).reply(statement, {"Cause": malformed.cause})
        self._close_when_answered()

    def input_ended(self) -> None:
        """The peer asks nothing more: close once all its requests are answered."""
        self._ending = True
        self._close_when_answered()

    def _close_when_answered(self) -> None:
        if self._ending and not self.outstanding:
            self.stream.close(linger=True)

    # Our questions.

    def ask(self, message: Message) -> Deferred[Message]:
        """Ask the peer; fires with its answer, fails with the connection. Cancel to give up."""
        if not self.stream.connected:
            return fail(ConnectionLost())
        self._serial += 1
        key = str(self._serial)
        if self.transactions:
            message.fields["Transaction"] = key
        answer: Deferred[Message] = Deferred(lambda _: self._forget(key))
        if self._questions is None:
            self._questions = {key: answer}
        else:
            self._questions[key] = answer
        self.stream.send(message)
        return answer

    def _forget(self, key: str) -> None:
        if self._questions is not None:
            self._questions.pop(key, None)
            if not self._questions:
                self._questions = None

    def answered(self, message: Message) -> bool:
        """Settle the question that a ``NOTIFY`` answers.

        With a transaction it answers that question alone; without one, the oldest open question.
        An answer with code 100 says that another follows.

        :return: whether there was such a question (I11)
        """
        questions = self._questions
        if questions is None:
            return False
        key = message.fields.get("Transaction")
        if key is None:
            key = next(iter(questions))
        answer = questions.get(key)
        if answer is None:
            return False
        if message.fields.get("Code") != "100":
            del questions[key]
            if not questions:
                self._questions = None
            answer.callback(message)
        return True

    def lost(self, reason: Failure | None = None) -> None:
        """The connection is gone: fail our questions, abandon the peer's requests.

        :param reason: why; passed on to our questions where TLS ended the connection
        """
        requests = list(self._requests or ())
        questions = list((self._questions or {}).values())
        self._requests = self._questions = None
        self._bare = 0
        for request in requests:
            request.done = True
            if request.work is not None:
                request.work.cancel()
        for question in questions:
            if not question.called:  # the one whose handler brought us here has been answered
                by_tls = reason is not None and reason.check(TlsFailed) is not None
                question.errback(reason if by_tls else Failure(ConnectionLost()))
