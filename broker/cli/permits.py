"""``broker permit``: who may call, in the mediator's list or in a terminal's own file."""

from __future__ import annotations

import argparse
import shlex
from argparse import Namespace
from collections.abc import Callable
from typing import Any, Final, NoReturn

from broker.cli.admin import SHOW_PERMITS
from broker.cli.mediator import (
    AS,
    CONNECTION,
    DEFAULT_MEDIATOR,
    TLS_OPTIONS,
    Invocation,
    Steps,
    at_mediator,
)
from broker.cli.output import CommandFailed, complain, limits_in_words
from broker.cli.table import (
    FILE,
    ID,
    Argument,
    Command,
    CommandGroup,
    OneOf,
    Run,
    Value,
    WrongUsage,
)
from broker.cli.terminal import close
from broker.messages.grammar import LIMITS, entry
from broker.messages.message import printable
from broker.messages.statements import REGISTRATION_COMPLETED
from broker.tables.permits import as_edits
from broker.terminal.consent_file import ACCEPT, REJECT, edit_file, read_lists

# In the list that the mediator keeps (fig. 3).


async def edit_accepted(invocation: Invocation) -> None:
    """Create, add to, or delete from the list of accepted callers."""
    arguments = invocation.arguments
    given = {name: getattr(arguments, name, None) for name in LIMITS}
    limits = "".join(f";{name}={value}" for name, value in given.items() if value is not None)
    entries = [f"{name}{limits}" for name in arguments.identifiers]
    await _register(invocation, edits=as_edits(entries, arguments.change.capitalize()))


async def edit_rejected(invocation: Invocation) -> None:
    """Add to, or delete from the list of rejected callers."""
    arguments = invocation.arguments
    edit = "Add" if arguments.change == "reject" else "Delete"
    await _register(invocation, reject=as_edits(arguments.identifiers, edit))


async def set_policy(invocation: Invocation) -> None:
    """Say who decides about calls."""
    await _register(invocation, policy=invocation.arguments.policy.capitalize())


async def _register(invocation: Invocation, **fields: Any) -> None:
    client = await invocation.connect()
    await client.register(**fields)
    print(REGISTRATION_COMPLETED)
    await close(client)


async def print_accepted(invocation: Invocation) -> None:
    """Print the list of accepted callers."""
    client = await invocation.connect()
    for listed in await client.accepted():
        print(printable(listed if invocation.arguments.plain else limits_in_words(listed)))
    await close(client)


# In a terminal's own file. This needs no server, and no reactor.

#: Which list of a file a change is about, and whether the callers named are on it afterwards.
_IN_FILE: Final = {
    "add": (ACCEPT, True),
    "delete": (ACCEPT, False),
    "reject": (REJECT, True),
    "unreject": (REJECT, False),
}

#: Arguments that make no sense with a file, and why.
_NOT_IN_FILE: Final = (
    (tuple(LIMITS), "a file has no limits; permit delete takes a caller off it"),
    (("plain",), "a file has no limits, and is always listed so"),
    (
        ("mediator", *TLS_OPTIONS, "password_file", "allow_clear_text", "trace"),
        "no mediator is involved",
    ),
)


def edit_own_file(arguments: Namespace) -> None:
    """Change a file, and make it if it is not there."""
    path = arguments.own_file
    sign, listed = _IN_FILE[arguments.change]
    try:
        lists = edit_file(path, arguments.identifiers, sign, listed=listed)
    except OSError as error:
        raise CommandFailed(f"{path}: {error.strerror}") from None
    print(f"{printable(path)} is changed")
    rejected = [name for name in dict.fromkeys(arguments.identifiers) if name in lists.rejected]
    if arguments.change == "add" and rejected:
        remedy = shlex.join(["broker", "permit", "unreject", "--local", path, *rejected])
        complain(f"{', '.join(rejected)} stays rejected in this file, which wins: {remedy}")


def print_own_file(arguments: Namespace) -> None:
    """Print what a file says: ``+ Ia``, ``- Ix``."""
    try:
        lists = read_lists(arguments.own_file)
    except OSError as error:
        raise CommandFailed(f"{arguments.own_file}: {error.strerror}") from None
    for sign, names in ((ACCEPT, lists.accepted), (REJECT, lists.rejected)):
        for name in names:
            print(printable(f"{sign} {name}"))


def _check_own_file(arguments: Namespace) -> None:
    """See that no option is given that would do nothing with ``--local``."""
    for names, why in _NOT_IN_FILE:
        for name in names:
            given = vars(arguments).get(name)
            if given not in (None, False) and given is not DEFAULT_MEDIATOR:
                option = name.replace("_", "-")
                raise WrongUsage(f"--{option} can't be used with --local: {why}")


def _either(steps: Steps, in_file: Run) -> Run:
    """Make a command that changes the mediator's list, or a file if ``--local`` names one."""

    def run(arguments: Namespace) -> None:
        if arguments.own_file is None:
            at_mediator(steps)(arguments)
        else:
            _check_own_file(arguments)
            in_file(arguments)

    return run


# The command line.

_WHERE: Final = (
    OneOf(
        Argument("--as", "identifier to act as", ID, dest="identifier"),
        Argument(
            "--local",
            "work on the --consent-file of a terminal on this machine instead (policy"
            " ask); no mediator is involved, and no option about one can be used",
            FILE,
            dest="own_file",
        ),
        required=True,
    ),
    *CONNECTION,
)


def _refuse_file(change: str, advice: str) -> Argument:
    """A hidden ``--local`` for a change that only the mediator's list knows: it says what to do."""

    def refuse(_: str) -> NoReturn:
        raise argparse.ArgumentTypeError(f"{change} is for a mediator's list (--as ID); {advice}")

    return Argument("--local", argparse.SUPPRESS, Value("FILE", refuse), default=argparse.SUPPRESS)


def _callers(nargs: str = "+") -> Argument:
    return Argument(
        "identifiers",
        "a terminal, or a group such as @family",
        Value("ID", entry, "identifier"),
        nargs=nargs,
    )


def _whole(limit: str) -> Callable[[str], int]:
    return lambda text: int(LIMITS[limit](text))


_LIMITS: Final = (
    Argument(
        "--expires",
        "permit them for this time only",
        Value("SECONDS", _whole("expires"), "number of seconds"),
    ),
    Argument(
        "--uses",
        "permit each of them this number of calls only",
        Value("NUMBER", _whole("uses"), "number of calls"),
    ),
)

COMMAND: Final = CommandGroup(
    "permit",
    "say who may call",
    Command(
        "create",
        "permit these callers and no others (without any ID: no caller)",
        at_mediator(edit_accepted),
        AS,
        *CONNECTION,
        _callers("*"),
        *_LIMITS,
        _refuse_file("create", "a file is changed by add, delete, reject and unreject"),
    ),
    Command(
        "add",
        "permit these callers too",
        _either(edit_accepted, edit_own_file),
        *_WHERE,
        _callers(),
        *_LIMITS,
    ),
    Command(
        "delete",
        "withdraw the permits of these callers",
        _either(edit_accepted, edit_own_file),
        *_WHERE,
        _callers(),
    ),
    Command(
        "reject",
        "never let these callers call, even if another entry permits them",
        _either(edit_rejected, edit_own_file),
        *_WHERE,
        _callers(),
    ),
    Command(
        "unreject",
        "take these callers off the list of rejected ones",
        _either(edit_rejected, edit_own_file),
        *_WHERE,
        _callers(),
    ),
    Command(
        "policy",
        "say who decides: the list, the terminal for each call, or its call password",
        at_mediator(set_policy),
        AS,
        *CONNECTION,
        Argument("policy", "what decides", choices=["list", "ask", "password"]),
        _refuse_file(
            "policy", "a terminal with a file is started with --policy ask --consent-file FILE"
        ),
    ),
    Command(
        "list",
        "print who may call, one entry on each line",
        _either(print_accepted, print_own_file),
        *_WHERE,
        Argument("--plain", "print limits as the mediator sends them: Ia;expires=60;uses=1"),
        more="A file (--local) also lists rejected callers: + Ia, - Ix.",
    ),
    SHOW_PERMITS,
    more="The list is kept by the mediator (--as), or in the file of a terminal that decides"
    " about each call itself (--local).",
    renamed={"refuse": "reject", "relent": "unreject"},
)
