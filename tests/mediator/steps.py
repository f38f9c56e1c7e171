"""Conversations as data: a step is a method of ``Scene`` with its arguments, called later.

So a test that is "X while Y" is a row of a table: what was said until then, X, and what follows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import methodcaller
from typing import Any, Final

from tests.mediator.scene import REQUESTED, Scene

Step = Callable[[Scene], Any]
Act = Callable[..., Step]

says: Final[Act] = partial(methodcaller, "says")
reads: Final[Act] = partial(methodcaller, "reads")
leaves: Final[Act] = partial(methodcaller, "leaves")
passes: Final[Act] = partial(methodcaller, "passes")
connect: Final[Act] = partial(methodcaller, "connect")
on_line: Final[Act] = partial(methodcaller, "on_line")
calls: Final[Act] = partial(methodcaller, "calls")
registers: Final[Act] = partial(methodcaller, "registers")
asks: Final[Act] = partial(methodcaller, "asks")
grants: Final[Act] = partial(methodcaller, "grants")
FORGET: Final[Step] = methodcaller("forget")


def holds(truth: Callable[[Any], bool]) -> Step:
    """This is true of the scene at that moment."""

    def step(scene: Scene) -> None:
        assert truth(scene)

    return step


def sessions(count: int) -> Step:
    """This number of sessions stands."""
    return holds(lambda scene: len(scene.context.sessions) == count)


def hold(*questions: str) -> Step:
    """From now on the answers of a ``SlowResolver`` to these questions are held."""

    def step(scene: Scene) -> None:
        resolver: Any = scene.broker.resolver
        resolver.hold = set(questions)

    return step


def resolved(error: Exception | None = None, **expected: str) -> Step:
    """The answer that was held first is let through, or an error is."""

    def step(scene: Scene) -> None:
        resolver: Any = scene.broker.resolver
        scene.fires(resolver.held.pop(0), error, **expected)

    return step


def fails(question: str, error: Exception | None) -> Step:
    """From now on a ``SlowResolver`` answers this question with an error, or as it should."""

    def step(scene: Scene) -> None:
        resolver: Any = scene.broker.resolver
        resolver.errors = {} if error is None else {question: error}

    return step


def lasts(seconds: float) -> Step:
    """From now on what is looked up holds for that long."""

    def step(scene: Scene) -> None:
        resolver: Any = scene.broker.resolver
        resolver.lasts = seconds

    return step


def dial(*, succeeds: bool, **expected: str) -> Step:
    """The last dial is accepted, and says only that a connection is requested; or refused."""

    def step(scene: Scene) -> None:
        if succeeds:
            there = scene.dials[-1].accept()
            assert (there.text(), there.closed) == (REQUESTED, True)
        else:
            scene.dials[-1].refuse()
        scene.reads(**expected)

    return step


def dialled(*ports: int) -> Step:
    """These ports were dialled so far, and no other."""
    return holds(lambda scene: [made.port for made in scene.dials] == [*ports])


def play(scene: Scene, *steps: Step) -> None:
    """Take the steps, one after the other."""
    for step in steps:
        step(scene)
