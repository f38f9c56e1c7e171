"""Conversations as data: a step is a method of ``Scene`` with its arguments, called later.

So a test that is "X while Y" is a row of a table: what was said until then, X, and what follows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import methodcaller
from typing import Any, Final

from tests.mediator.scene import Scene

Step = Callable[[Scene], Any]

says: Final = partial(methodcaller, "says")
reads: Final = partial(methodcaller, "reads")
leaves: Final = partial(methodcaller, "leaves")
passes: Final = partial(methodcaller, "passes")
connect: Final = partial(methodcaller, "connect")
on_line: Final = partial(methodcaller, "on_line")
calls: Final = partial(methodcaller, "calls")
registers: Final = partial(methodcaller, "registers")
asks: Final = partial(methodcaller, "asks")
grants: Final = partial(methodcaller, "grants")
FORGET: Final[Step] = methodcaller("forget")


def holds(truth: Callable[[Scene], bool]) -> Step:
    """This is true at that moment."""

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


def resolved(**expected: str) -> Step:
    """The answer that was held first is let through."""

    def step(scene: Scene) -> None:
        resolver: Any = scene.broker.resolver
        scene.fires(resolver.held.pop(0), **expected)

    return step


def lasts(seconds: float) -> Step:
    """From now on what is looked up holds for that long."""

    def step(scene: Scene) -> None:
        resolver: Any = scene.broker.resolver
        resolver.lasts = seconds

    return step


def dial(*, succeeds: bool, **expected: str) -> Step:
    """The last dial is accepted, or refused."""

    def step(scene: Scene) -> None:
        if succeeds:
            scene.dials[-1].accept()
        else:
            scene.dials[-1].refuse()
        scene.reads(**expected)

    return step


def play(scene: Scene, *steps: Step) -> None:
    """Take the steps, one after the other."""
    for step in steps:
        step(scene)
