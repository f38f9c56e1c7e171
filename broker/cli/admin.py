"""The operator's commands. Most ask a running broker, by its socket. None needs a reactor."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib import import_module
from typing import Any, Final

from broker.cli.output import REFUSED, CommandFailed, Unreachable, count, print_columns, print_json
from broker.cli.table import (
    EXIT_STATUS_OF_FILES,
    FILE,
    ID,
    Argument,
    Command,
    CommandGroup,
    OneOf,
    Run,
    Value,
)
from broker.messages.grammar import entry, identifier
from broker.messages.message import host_port, printable
from broker.service.admin_socket import ADMIN, parse_admin
from broker.service.settings.common import parse_store
from broker.service.settings.credentials import NoPasswordGiven, ask_password, read_password
from broker.service.settings.options import RoleOptions
from broker.store.backup import back_up
from broker.tables.grants import draw_credentials

#: Seconds to wait for the next bytes of an answer.
PATIENCE: Final = 60.0

#: The roles, and the module of each; it is imported only when it is needed.
ROLES: Final = {"broker": "mediator", "broker-resolver": "resolver", "broker-terminal": "terminal"}

Row = dict[str, Any]


class AdminRefused(CommandFailed):
    """The broker has not done what was asked.

    :ivar kind: ``refused``, ``busy``, ``bad`` or ``failed``
    """

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind = kind
        if kind == "refused":
            self.status = REFUSED


class NoBroker(Unreachable):
    """No broker answers, or it has ended the connection; the text says what to do."""


# Asking.


def ask(path: str, request: Row, show: Callable[[Row], object]) -> Row:
    """Ask a broker for something.

    :param path: its socket
    :param show: called with each row of the answer
    :return: the end of the answer
    :raises AdminRefused: it has not been done
    :raises NoBroker: no broker answers
    """
    for row in _answer(path, request):
        if "error" in row:
            raise AdminRefused(row["kind"], row["error"])
        if "done" in row:
            return row
        show(row)
    raise NoBroker(
        f"the broker at {path} has ended the connection; it may have done what was asked"
    )


def _answer(path: str, request: Row) -> Iterator[Row]:
    """The rows of an answer, as they come."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(path)
            with suppress(BrokenPipeError):  # it has already refused us, and the answer says why
                connection.sendall(json.dumps(request).encode("utf-8") + b"\n")
            with connection.makefile("rb") as answer:
                for line in answer:
                    yield json.loads(line)
    except (FileNotFoundError, ConnectionRefusedError):
        raise NoBroker(
            f"no broker answers at {path}: start it, or name its socket with --admin unix:PATH"
            " (default: in this folder)"
        ) from None
    except PermissionError:
        raise NoBroker(
            f"{path} belongs to another user: run this as the user that the broker runs as"
        ) from None
    except TimeoutError:
        raise NoBroker(f"the broker at {path} does not answer") from None
    except ValueError:
        raise NoBroker(f"what answers at {path} is no broker") from None
    except ConnectionError:
        return


def _do(arguments: Namespace, show: Callable[[Row], object], request: Row) -> Row:
    """Ask for something, and show each row of the answer; with ``--json``, unchanged."""
    if arguments.json:
        end = ask(arguments.admin, request, print_json)
        print_json(end)
        return end
    return ask(arguments.admin, request, show)


def _asks(
    do: str,
    *fields: str,
    show: Callable[[Row], object] = print_columns,
    done: Callable[[Namespace, Row], str | None] = lambda *_: None,
) -> Run:
    """Make a command that asks for one thing.

    :param do: what the socket calls it
    :param fields: the arguments that the request holds; one that is not given is left out
    :param show: prints a row of the answer
    :param done: says what has been done, of the arguments and the end of the answer
    """

    def run(arguments: Namespace) -> None:
        given = {name: getattr(arguments, name) for name in fields}
        request = {name: value for name, value in given.items() if value is not None}
        end = _do(arguments, show, {"do": do, **request})
        text = done(arguments, end)
        if text is not None and not arguments.json:
            print(printable(text))

    return run


# Accounts.


def _sets_password(do: str, done: str) -> Run:
    """Make a command that gives an account a password."""

    def run(arguments: Namespace) -> None:
        password = _new_password(arguments)
        request = {"do": do, "identifier": arguments.identifier, "password": password}
        end = ask(arguments.admin, request, print_json)
        if arguments.json:
            print_json({**end, **({"password": password} if arguments.generate else {})})
            return
        print(printable(done.format(arguments.identifier)))
        if arguments.generate:
            print(f"Its password, which is not shown again: {password}")

    return run


def _new_password(arguments: Namespace) -> str:
    """The password to set; never from the command line, where others can see it (I18).

    :raises CommandFailed: there is none
    :raises InvalidFile: it can't be read
    """
    if arguments.generate:
        return draw_credentials(os.urandom).password
    if arguments.password_file is not None:
        return read_password(arguments.password_file)
    if not sys.stdin.isatty():
        raise CommandFailed(
            "standard input is no terminal to ask for a password at: name a --password-file, or"
            " use --generate"
        )
    try:
        typed = [ask_password(arguments.identifier + again) for again in ("", ", once more")]
    except NoPasswordGiven:
        raise CommandFailed("no password was given") from None
    passwords = {found.password for found in typed if found is not None}
    if None in typed:
        raise CommandFailed("there is no terminal to ask for a password at: name a --password-file")
    if len(passwords) > 1:
        raise CommandFailed("the two passwords differ: nothing was changed")
    return passwords.pop()


def _account_removed(arguments: Namespace, end: Row) -> str:
    lists, groups = count(end["lists"], "list"), count(end["groups"], "group")
    return f"{arguments.identifier} is removed, also from {lists} and {groups}"


def _show_account(row: Row) -> None:
    state = "reached" if row["reached"] else "connected" if row["connections"] else "away"
    print_columns(row["identifier"], state, ",".join(row["groups"]), ",".join(row["names"]))


# Groups.


def _members(arguments: Namespace, end: Row) -> str:
    return f"{arguments.group} has {count(end['members'], 'member')}"


def _group_deleted(arguments: Namespace, end: Row) -> str:
    members, lists = count(end["members"], "member"), count(end["lists"], "list")
    return f"{arguments.group} is deleted; it had {members}, and {lists} named it"


_remove_members: Final = _asks("group remove", "group", "members", done=_members)
_delete_group: Final = _asks("group delete", "group", done=_group_deleted)


def _delete_from_group(arguments: Namespace) -> None:
    """Delete members from a group, or the whole group if no member is named."""
    (_remove_members if arguments.members else _delete_group)(arguments)


_list_groups: Final = _asks(
    "group list", show=lambda row: print_columns(row["group"], row["members"])
)
_list_members: Final = _asks(
    "group members", "group", show=lambda row: print_columns(row["identifier"])
)


def _list_group(arguments: Namespace) -> None:
    (_list_groups if arguments.group is None else _list_members)(arguments)


# Who may call, and who was told.


def _show_permit(row: Row) -> None:
    columns = [row["caller"] or "", row["entry"]]
    if row["expires"] is not None:
        columns.append(f"{timedelta(seconds=row['expires'])} left")
    if row["uses"] is not None:
        columns.append(f"{count(row['uses'], 'call')} left")
    if row["caller"] is None:
        columns.append("no member" if row["group"] == "empty" else "there is no such group")
    print_columns(*columns)


def _list_in_force(arguments: Namespace, end: Row) -> str | None:
    if "policy" not in end:
        return None
    return f"{end['identifier']} has no list in force: its policy is {end['policy']}"


def _show_disclosure(row: Row) -> None:
    where = host_port(row["address"], row["port"])
    at, until = (_to_seconds(row[name]) for name in ("at", "until"))
    print_columns(at, row["told"], where, row["entry"], row["session"], f"until {until}")


def _to_seconds(moment: str) -> str:
    return f"{datetime.fromisoformat(moment):%Y-%m-%dT%H:%M:%SZ}"


# Files: a configuration, a backup.


def check_config(arguments: Namespace) -> None:
    """Say what is wrong with a configuration file, as the role itself would."""
    role = import_module(f"broker.service.{ROLES[arguments.role]}")
    options: RoleOptions = role.Options()
    try:
        options.parseOptions([f"--config={arguments.file}"])
    except SystemExit as wrong:
        lines = [line.removeprefix(f"{arguments.role}: ") for line in str(wrong).splitlines()]
        raise CommandFailed(*lines) from None
    print(f"{printable(arguments.file)} is valid")


def backup(arguments: Namespace) -> None:
    """Copy a store to a file."""
    back_up(arguments.store, arguments.file)
    print(f"{printable(arguments.file)} is a copy of {printable(arguments.store)}")


# Values of arguments.


def _path(text: str) -> str:
    path = parse_admin(text)
    if path is None:
        raise ValueError("no broker can be asked there")
    return path


def _group(text: str) -> str:
    name = entry(text)
    if name[0] != "@":
        raise ValueError("a group's name begins with @")
    return name


def _positive(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < 1:
        raise ValueError("must be a number from 1 on")
    return int(text)


_AGO: Final = re.compile("([0-9]{1,9})([smhdw])")
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def _since(text: str) -> int:
    """A time, in seconds since 1970: an age such as ``2h``, or a date."""
    ago = _AGO.fullmatch(text)
    if ago is not None:
        return max(0, int(time.time()) - int(ago[1]) * _UNITS[ago[2]])
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("must be 30m, 2h or 7d, or a date such as 2026-11-20T08:00") from None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0, int(when.timestamp()))


def _database(text: str) -> str:
    path = parse_store(text)
    if path is None:
        raise ValueError("there is no file to copy")
    return path


# The command line.

_EXIT_STATUS: Final = """\
exit status: 0 done, 1 failed, 2 wrong usage, 3 no broker answers, 4 refused
"""
_ACCOUNT: Final = f"""\
examples:
  broker account add Ia                          ask for a password, twice
  broker account add Ia --generate               generate a password, and print it once
  broker account add Ia --password-file ia.txt   read it from a file of mode 0600
  broker account reset Ia                        new password; connections of Ia are closed
  broker account name add Ia taro@example.com    Ia may also be called by this name
  broker account remove Ia                       remove Ia, also from every list and group
  broker account list                            identifier, state, groups, names; by tabs

{_EXIT_STATUS}"""
_GROUP: Final = f"""\
examples:
  broker group create @family Ia Ic   make a group; lists may name it: permit add --as Ib @family
  broker group add @family If         add If
  broker group delete @family Ic      take Ic out; sessions that Ic had through the group end
  broker group list                   every group, and the number of its members; by tabs
  broker group list @family           its members, one on each line
  broker group delete @family         delete the group, also from every list that names it

{_EXIT_STATUS}"""
_PERMIT: Final = f"""\
One line for each caller who may call ID now: the caller, the entry of the list that permits it, and
what is left of the entry's limits, separated by tabs. A group is shown as its members.

examples:
  broker permit show Ib
  broker permit show Ib | grep '@family'

{_EXIT_STATUS}"""
_WHO_KNOWS: Final = f"""\
One line for each time that the address was disclosed, the newest first: when (UTC), to which
caller, the address, the entry of the list that permitted it, the session, and the latest end of
that session, separated by tabs.

examples:
  broker who-knows Ib
  broker who-knows Ib --since 2h --most 20
  broker who-knows Ib --since 2026-11-20T08:00

{_EXIT_STATUS}"""
_CHECK: Final = """\
examples:
  broker check-config /etc/broker/broker.toml
  broker check-config --role broker-terminal terminal.toml

exit status: 0 the file is valid, 1 it is not, 2 wrong usage
"""

_SOCKET: Final = (
    Argument(
        "--admin",
        "the broker's socket for the operator (default: %(default)s)",
        Value("unix:PATH", _path, "socket"),
        default=ADMIN.default,
    ),
    Argument("--json", "print the broker's answer, one JSON object on each line"),
)


def _asking(epilog: str, name: str, brief: str, run: Run, *arguments: Argument | OneOf) -> Command:
    """A command that asks a broker."""
    return Command(name, brief, run, *_SOCKET, *arguments, epilog=epilog)


def _id(purpose: str = "account") -> Argument:
    return Argument("identifier", purpose, ID)


def _group_name(nargs: str | None = None) -> Argument:
    return Argument("group", "the group", Value("@GROUP", _group, "group"), nargs=nargs)


def _member_names(nargs: str) -> Argument:
    return Argument("members", "a terminal", ID, nargs=nargs)


_account = partial(_asking, _ACCOUNT)
_NEW_PASSWORD: Final = OneOf(
    Argument(
        "--password-file",
        "read the password from this file, which only you can read (default: you are asked)",
        FILE,
    ),
    Argument("--generate", "generate a password, and print it once"),
)
_NAME: Final = Argument("name", "the name", Value("NAME", identifier, "name"))
_add_name: Final = _asks(
    "account name add",
    *("identifier", "name"),
    done=lambda given, _: f"{given.name} is a name of {given.identifier}",
)
_remove_name: Final = _asks(
    "account name remove",
    *("identifier", "name"),
    done=lambda given, _: f"{given.name} is taken from {given.identifier}",
)

_ACCOUNTS: Final = CommandGroup(
    "account",
    "manage who may log in",
    _account(
        "add",
        "make an account",
        _sets_password("account add", "{} has an account"),
        _id(),
        _NEW_PASSWORD,
    ),
    _account(
        "reset",
        "give an account another password",
        _sets_password("account reset", "{} has a new password; its connections are closed"),
        _id(),
        _NEW_PASSWORD,
    ),
    _account(
        "remove",
        "remove an account",
        _asks("account remove", "identifier", done=_account_removed),
        _id(),
    ),
    _account("list", "print every account", _asks("account list", show=_show_account)),
    CommandGroup(
        "name",
        "manage other names of an account",
        _account("add", "give an account another name", _add_name, _id(), _NAME),
        _account("remove", "take a name from an account", _remove_name, _id(), _NAME),
        epilog=_ACCOUNT,
        dest="name_change",
    ),
    epilog=_ACCOUNT,
)

_of_group = partial(_asking, _GROUP)
_create_group: Final = _asks("group create", "group", "members", done=_members)
_add_members: Final = _asks("group add", "group", "members", done=_members)

_GROUPS: Final = CommandGroup(
    "group",
    "manage groups of terminals",
    _of_group("create", "make a group", _create_group, _group_name(), _member_names("*")),
    _of_group("add", "add members to a group", _add_members, _group_name(), _member_names("+")),
    _of_group(
        "delete",
        "delete members from a group, or the group itself",
        _delete_from_group,
        _group_name(),
        _member_names("*"),
    ),
    _of_group("list", "print every group, or the members of one", _list_group, _group_name("?")),
    epilog=_GROUP,
)

#: ``broker permit show``: it stands among the commands about permits.
SHOW_PERMITS: Final = _asking(
    _PERMIT,
    "show",
    "print who may call a terminal now (for the operator)",
    _asks("permit show", "identifier", show=_show_permit, done=_list_in_force),
    _id("identifier or name of the terminal"),
)

COMMANDS: Final = (
    _ACCOUNTS,
    _GROUPS,
    _asking(
        _WHO_KNOWS,
        "who-knows",
        "print who was told where a terminal is (for the operator)",
        _asks("who knows", "identifier", "since", "most", show=_show_disclosure),
        _id("identifier or name of the terminal"),
        Argument(
            "--since",
            "only since then: 30m, 2h, 7d ago, or a date such as 2026-11-20 or"
            " 2026-11-20T08:00 (UTC, unless it names another time zone)",
            Value("WHEN", _since, "time"),
        ),
        Argument(
            "--most", "print at most this number of lines", Value("NUMBER", _positive, "number")
        ),
    ),
    Command(
        "check-config",
        "check a configuration file",
        check_config,
        Argument("file", "the file, as the role would be given it", FILE),
        Argument(
            "--role",
            "the role that it is for (default: %(default)s)",
            choices=ROLES,
            default="broker",
        ),
        more="Nothing is opened, started or written.",
        epilog=_CHECK,
    ),
    Command(
        "backup",
        "copy the store of a mediator to a file",
        backup,
        Argument(
            "--store",
            "the mediator's store",
            Value("sqlite:PATH", _database, "store"),
            required=True,
        ),
        Argument("file", "file for the copy", FILE),
        more="The mediator may be running. An earlier backup of that name is replaced when"
        " the new one is complete. To restore it: stop the mediator, move the database"
        " and the files next to it away, and put the copy in its place.",
        epilog=EXIT_STATUS_OF_FILES,
    ),
)
