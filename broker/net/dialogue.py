"""One peer's conversation: its requests and our replies in order, our questions and its answers.

Bare replies leave in the order of their requests; replies with a transaction leave when they are
ready; what we send of ourselves never waits behind a reply.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure

from broker.messages.grammar import NOTIFY, STATEMENT
from broker.messages.message import Malformed, Message
from broker.messages.statements import BAD_MESSAGE, CODES, TOO_LARGE
from broker.net.connection import PeerConnection
from broker.net.tls.errors import TlsFailed


class Request:
    """One request of a peer, and the way its replies take back.

    :ivar message: what was asked
    :ivar done: it has had its last reply
    :ivar held: replies that wait for those of earlier requests, ``None`` once they need not
    """

    __slots__ = ("_conversation", "_turn", "abandoned", "done", "held", "message", "transaction")

    def __init__(self, conversation: Dialogue, message: Message) -> None:
        self.message = message
        self.transaction = message.fields.get("Transaction")
        self.done = False
        #: Called when the peer goes before its last reply.
        self.abandoned: Callable[[], None] | None = None
        self._conversation = conversation
        self.held: list[Message] | None = None
        self._turn: Deferred[None] | None = None

    async def turn(self) -> None:
        """Wait until a reply would leave at once: for what may be told only if it is true then.

        To give up does not hurry it, unless the peer has gone.

        :raises CancelledError: it has
        """
        while self.held is not None:
            self._turn = Deferred()
            try:
                await self._turn
            except CancelledError:
                if self.done:
                    raise

    def is_next(self) -> None:
        """The replies of earlier requests have left."""
        turn, self._turn = self._turn, None
        if turn is not None:
            turn.callback(None)

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
        :param fields: further lines; what the figure doesn't show is left out of a bare reply by
            whoever builds them (``Request.bare``)
        :param code: the code, where the statement doesn't say it
        """
        if self.done:
            return
        if fields is None:
            if self.held is None and self._conversation.stream.untraced:
                self._say(statement, more, code)
                return
            message = Message.of(NOTIFY, {STATEMENT: statement})
        elif statement:
            message = Message.of(NOTIFY, {STATEMENT: statement, **fields})
        else:
            message = Message.of(NOTIFY, fields)
        if self.transaction is not None:
            message.fields["Transaction"] = self.transaction
            message.fields["Code"] = str(code or CODES[statement])
        if not more:
            self.done = True
        self._conversation.replied(self, message)

    def _say(self, statement: str, more: bool, code: int) -> None:
        """A bare statement that leaves at once, as most are: spares a thirtieth of a call."""
        text = f"{NOTIFY}\r\n{statement}\r\n"
        if self.transaction is not None:
            code = code or CODES[statement]
            text += f"Transaction:{self.transaction}\r\nCode:{code}\r\n"
        self._conversation.stream.write(f"{text}\r\n".encode())
        if not more:
            self.done = True
            self._conversation.settle(self)

    @property
    def bare(self) -> bool:
        """Whether replies are to look exactly as in the figures."""
        return self.transaction is None


class Dialogue:
    """What is open between us and one peer.

    :ivar stream: the connection
    :ivar transactions: the peer has itself used a transaction, and so will understand ours
    """

    __slots__ = (
        "_ending",
        "_passing_on",
        "_questions",
        "_requests",
        "_serial",
        "_unordered",
        "stream",
        "transactions",
    )

    def __init__(self, stream: PeerConnection, *, transactions: bool = False) -> None:
        self.stream = stream
        self.transactions = transactions
        self._requests: list[Request] | None = None  # bare ones, in order
        self._unordered: set[Request] | None = None  # those with a transaction
        self._questions: dict[str, Deferred[Message]] | None = None
        self._serial = 0
        self._ending = False
        self._passing_on = False

    # The peer's requests.

    def asked(self, message: Message) -> Request:
        """Take a request in; it holds its place among the replies until it is done."""
        request = Request(self, message)
        if request.transaction is None:
            if self._requests is None:
                self._requests = [request]
            else:
                request.held = []
                self._requests.append(request)
        else:
            self.transactions = True
            if self._unordered is None:
                self._unordered = {request}
            else:
                self._unordered.add(request)
        if self.outstanding >= self.stream.decoder.limits.outstanding:
            self.stream.hold()
        return request

    @property
    def outstanding(self) -> int:
        """Requests that have not had their last reply."""
        bare = len(self._requests) if self._requests is not None else 0
        return bare + (len(self._unordered) if self._unordered is not None else 0)

    def replied(self, request: Request, message: Message) -> None:
        """A reply of a request is ready: send it, or hold it until its turn."""
        if request.held is not None:
            request.held.append(message)
            return
        self.stream.send(message)
        if request.done:
            self.settle(request)

    def settle(self, request: Request) -> None:
        """A request has had its last reply: the next one's turn."""
        if request.transaction is not None:
            if self._unordered is not None:
                self._unordered.discard(request)
                if not self._unordered:
                    self._unordered = None
        else:
            self._next_bare()
        self.stream.go_on()
        self._close_when_answered()

    def _next_bare(self) -> None:
        if self._passing_on:
            return  # whoever is next is done at once: the loop that told it goes on
        requests = self._requests
        while requests:
            requests.pop(0)
            if not requests:
                break
            first = requests[0]
            held = first.held or ()
            first.held = None
            for message in held:
                self.stream.send(message)
            if not first.done:
                self._passing_on = True
                first.is_next()
                self._passing_on = False
            if not first.done:
                return
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
            self.asked(message).reply(statement, {"Cause": malformed.cause})
        self._close_when_answered()

    def input_ended(self) -> None:
        """The peer asks nothing more: close when all it asked is answered."""
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

        With a transaction it answers that question alone; without one, the oldest that is open. An
        answer with code 100 says that another follows.

        :return: whether there was such a question (I11)
        """
        if self._questions is None:
            return False
        key = message.fields.get("Transaction")
        if key is None:
            key = next(iter(self._questions))
        answer = self._questions.get(key)
        if answer is None:
            return False
        if message.fields.get("Code") != "100":
            self._forget(key)
            answer.callback(message)
        return True

    def lost(self, reason: Failure | None = None) -> None:
        """The connection is gone: fail our questions, give up the peer's requests.

        :param reason: why; who asked is told where it was TLS that ended the connection
        """
        requests = [*(self._requests or ()), *(self._unordered or ())]
        questions = list((self._questions or {}).values())
        self._requests = self._unordered = self._questions = None
        for request in requests:
            request.done = True
            if request.abandoned is not None:
                request.abandoned()
        for question in questions:
            if not question.called:  # one who called itself has given up by now
                told = reason is not None and reason.check(TlsFailed) is not None
                question.errback(reason if told else Failure(ConnectionLost()))
