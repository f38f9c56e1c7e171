"""How a terminal logs in over each new connection: by its token, else by its password."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from twisted.logger import Logger

from broker.messages.errors import LoginRequired, Refused
from broker.messages.message import Message, printable
from broker.tables.permits import as_edits
from broker.terminal.errors import CannotLogIn
from broker.terminal.registration.client import ANSWER_TIMEOUT, MediatorClient
from broker.terminal.settings import TerminalSettings

#: Seconds that logging in and registering may take: a token that is refused, then the password.
LOGIN_PATIENCE: Final = 2 * ANSWER_TIMEOUT

NOT_REGISTERED: Final = "The mediator refused the registration of {identifier}: {statement} {cause}"
NOT_LOGGED_IN: Final = "{identifier} could not log in and keeps trying: {statement} {cause}"
NO_PASSWORD: Final = "; there is no password: name a file or run broker login"

#: The code of a login that is refused: what was shown is wrong, or nothing was.
_NOT_PROVEN: Final = 401
#: The code of one that is not even checked, after too many failures; its cause counts seconds.
_TOO_MANY: Final = 429
#: The codes of refusals that the next attempt gets too, and that the mediator counts (I23): what
#: was shown is wrong, or proves another identifier; too many attempts already.
_HOPELESS: Final = frozenset((_NOT_PROVEN, 403, _TOO_MANY))


class Login:
    """The login of one terminal.

    :ivar refused: the last login was refused in a way that the next one will be too
    """

    log = Logger()

    def __init__(self, settings: TerminalSettings) -> None:
        self._settings = settings
        self._epoch: str | None = None
        self._token: str | None = None
        self._refusal: str | None = None  # what was logged, so that it is logged once

    @property
    def refused(self) -> bool:
        """Whether the last login was refused, so that trying again at once is pointless."""
        return self._refusal is not None

    def succeeded(self) -> None:
        """The terminal is logged in: the next refusal is logged again."""
        self._refusal = None

    async def log_in(self, client: MediatorClient, contact: Mapping[str, Any]) -> Message:
        """Log in and register in one message.

        :param contact: where the terminal is, as arguments of ``MediatorClient.register``
        :return: the answer
        :raises Refused: the mediator refused, or the terminal itself (``CannotLogIn``)
        """
        settings = self._settings
        answer = await self._register(
            client, {**contact, "name": settings.name, "policy": settings.policy}
        )
        # A token is valid for one epoch: none is kept beyond it.
        kept = self._token if answer.get("Epoch") == self._epoch else None
        self._token = answer.get("Token") or kept
        return answer

    async def add_permits(self, client: MediatorClient, epoch: str | None) -> None:
        """Add the permits of ``accept``, once for each epoch of the mediator's store.

        Not at each login: what the user has withdrawn since stays withdrawn.

        :raises Refused: the mediator refused
        """
        accept = self._settings.accept
        if accept and epoch != self._epoch:
            await client.register(edits=as_edits(accept, "Add"))
        self._epoch = epoch

    async def _register(self, client: MediatorClient, fields: Mapping[str, Any]) -> Message:
        """Register by the token; where there is none, or it is refused, by the password."""
        if self._token is not None:
            try:
                return await client.register(token=self._token, **fields)
            except Refused as refusal:
                if refusal.code != _NOT_PROVEN:
                    raise
                self._token = None
        try:
            password = self._settings.password
            if callable(password):
                password = password()
            return await client.register(password=password, **fields)
        except ValueError as error:  # it cannot be read, or cannot be a password
            raise CannotLogIn(str(error)) from None

    def note_refusal(self, refusal: Refused, identifier: str) -> bool:
        """Log a refusal; one that repeats the last one, only once.

        :return: whether the next attempt will be refused too, so that there is no hurry
        """
        hopeless = refusal.code in _HOPELESS or isinstance(refusal, CannotLogIn)
        cause = refusal.cause
        if hopeless:
            if isinstance(refusal, LoginRequired) and self._settings.password is not None:
                cause += NO_PASSWORD
            # The cause of "too many" counts down seconds, and would be new each time.
            text = refusal.statement if refusal.code == _TOO_MANY else cause
            if text == self._refusal:
                return True
            self._refusal = text
        self.log.warn(
            NOT_LOGGED_IN if hopeless else NOT_REGISTERED,
            identifier=printable(identifier),
            statement=refusal.statement,
            cause=printable(cause),
        )
        return hopeless
