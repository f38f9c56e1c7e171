"""What the commands' parsers have in common."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def argument(parse: Callable[[str], T], noun: str) -> Callable[[str], T]:
    """A type for argparse, which tells why a value is wrong."""

    def checked(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is no {noun}: {error}") from None

    return checked
