"""What must hold after every conversation with the mediator, whatever else was tested by it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from twisted.logger import ILogObserver, LogLevel, eventAsText, globalLogPublisher
from zope.interface import implementer

from tests.mediator.scene import SCENES


class Logged:
    """The log events of one test.

    :ivar events: all of them, in order
    """

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def texts(self) -> list[str]:
        """Each event as a log file would hold it, traceback included."""
        return [eventAsText(event, includeTimestamp=False) for event in self.events]

    def failures(self) -> list[str]:
        """The exceptions that were logged, taken out: the test has expected them."""
        failures = [event for event in self.events if _is_failure(event)]
        self.events = [event for event in self.events if not _is_failure(event)]
        return [eventAsText(event, includeTimestamp=False) for event in failures]


def _is_failure(event: dict[str, Any]) -> bool:
    return event.get("log_failure") is not None or event["log_level"] >= LogLevel.error


@pytest.fixture(autouse=True)
def logged() -> Iterator[Logged]:
    """The log of the test; afterwards, that it holds no secret and no exception (I18, I19, I24).

    And that each scene, once everybody has left it, is empty (I15).
    """
    log = Logged()
    seen: list[str] = []

    @implementer(ILogObserver)
    def observe(event: dict[str, Any]) -> None:
        log.events.append(event)
        seen.append(eventAsText(event, includeTimestamp=False) + repr(event))

    SCENES.clear()
    globalLogPublisher.addObserver(observe)
    try:
        yield log
        for scene in SCENES:
            scene.finish()
            for secret in scene.secrets:
                assert not any(secret in text for text in seen), "a secret is in the log"
    finally:
        globalLogPublisher.removeObserver(observe)
    assert log.failures() == []
