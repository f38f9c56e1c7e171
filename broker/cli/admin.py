"""The operator's commands: they ask a broker that runs, by its socket. No reactor.

Exit status: 0 done, 1 failed, 2 wrong usage, 3 no broker answers, 4 refused.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from importlib import import_module
from typing import Any, Final

from broker.cli.arguments import argument
from broker.messages.grammar import entry, identifier
from broker.messages.message import host_port, printable
from broker.net.tls.certificates import InvalidFile
from broker.service.admin_socket import ADMIN, parse_admin
from broker.service.settings.credentials import NoAnswer, ask_password, read_password
from broker.service.settings.options import RoleOptions
from broker.tables.grants import make_grant

FAILED: Final = 1
UNREACHABLE: Final = 3
REFUSED: Final = 4

#: Seconds for which a broker may say nothing.
PATIENCE: Final = 60.0

#: The roles, with the modules that they are; no other command waits until these are imported.
ROLES: Final = {"broker": "mediator", "broker-resolver": "resolver", "broker-terminal": "terminal"}

EXIT_STATUS: Final = """\
exit status: 0 done, 1 failed, 2 wrong usage, 3 no broker answers, 4 refused
"""

Row = dict[str, Any]


class Refused(Exception):
    """The broker has not done what was asked; the text says why.

    :ivar kind: ``refused``, ``busy``, ``bad`` or ``failed``
    """

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind = kind


class NoBroker(Exception):
    """There is no broker to ask, or it went away; the text says what to do."""


class CannotAsk(Exception):
    """Something that is needed before a broker is asked can't be had."""


# Asking.


def ask(path: str, request: Row, told: Callable[[Row], object]) -> Row:
    """Ask a broker for something.

    :param path: its socket
    :param told: called with each row of the answer
    :return: the end of the answer
    :raises Refused: it hasn't been done
    :raises NoBroker: nobody answers
    """
    for row in _answer(path, request):
        if "error" in row:
            raise Refused(row["kind"], row["error"])
        if "done" in row:
            return row
        told(row)
    raise NoBroker(
        f"the broker at {path} has ended the connection; it may have done what was asked"
    )


def _answer(path: str, request: Row) -> Iterator[Row]:
    """The lines of an answer, as far as it comes."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
            asking.settimeout(PATIENCE)
            asking.connect(path)
            with suppress(BrokenPipeError):  # it wants no request, and has said why
                asking.sendall(json.dumps(request).encode("utf-8") + b"\n")
            with asking.makefile("rb") as answer:
                for line in answer:
                    yield json.loads(line)
    except (FileNotFoundError, ConnectionRefusedError):
        raise NoBroker(
            f"no broker answers at {path}: start it, or name its socket with --admin unix:PATH"
            " (without, it is looked for in this folder)"
        ) from None
    except PermissionError:
        raise NoBroker(
            f"{path} belongs to another user: run this as the user as whom the broker runs"
        ) from None
    except TimeoutError:
        raise NoBroker(f"the broker at {path} does not answer") from None
    except ValueError:
        raise NoBroker(f"what answers at {path} is no broker") from None
    except ConnectionError:
        return


def _do(arguments: argparse.Namespace, show: Callable[[Row], object], **request: object) -> Row:
    """Ask for something, and show each row of the answer; for scripts, each line as it comes."""
    if arguments.json:
        end = ask(arguments.admin, request, _show_json)
        _show_json(end)
        return end
    return ask(arguments.admin, request, show)


def _show_json(row: Row) -> None:
    print(json.dumps(row))  # in ASCII: no power over a terminal


def _show(*columns: object) -> None:
    print("\t".join(printable(str(column)) or "-" for column in columns))


def _say(arguments: argparse.Namespace, text: str) -> None:
    if not arguments.json:
        print(printable(text))


def _count(number: object, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


# Accounts.


def add_account(arguments: argparse.Namespace) -> None:
    """Make an account."""
    _set_password(arguments, "add", f"{arguments.identifier} has an account")


def reset_account(arguments: argparse.Namespace) -> None:
    """Give an account another password."""
    done = f"{arguments.identifier} has another password; its connections are closed"
    _set_password(arguments, "reset", done)


def _set_password(arguments: argparse.Namespace, what: str, done: str) -> None:
    password = _password(arguments)
    request = {"do": f"account {what}", "identifier": arguments.identifier, "password": password}
    end = ask(arguments.admin, request, _show_json)
    generated = {"password": password} if arguments.generate else {}
    if arguments.json:
        _show_json({**end, **generated})
    else:
        print(printable(done))
        if generated:
            print(f"Its password, which is not shown again: {password}")


def remove_account(arguments: argparse.Namespace) -> None:
    """Remove an account."""
    end = _do(arguments, _show, do="account remove", identifier=arguments.identifier)
    lists, groups = _count(end["lists"], "list"), _count(end["groups"], "group")
    _say(
        arguments, f"{arguments.identifier} has no account any more; {lists} and {groups} named it"
    )


def list_accounts(arguments: argparse.Namespace) -> None:
    """Print every account."""
    _do(arguments, _show_account, do="account list")


def _show_account(row: Row) -> None:
    state = "reached" if row["reached"] else "connected" if row["connections"] else "away"
    _show(row["identifier"], state, ",".join(row["groups"]), ",".join(row["names"]))


def add_name(arguments: argparse.Namespace) -> None:
    """Give an account a further name."""
    whose, name = arguments.identifier, arguments.name
    _do(arguments, _show, do="account name add", identifier=whose, name=name)
    _say(arguments, f"{name} is a name of {whose}")


def remove_name(arguments: argparse.Namespace) -> None:
    """Take a name from an account."""
    whose, name = arguments.identifier, arguments.name
    _do(arguments, _show, do="account name remove", identifier=whose, name=name)
    _say(arguments, f"{name} is no name of {whose} any more")


# Groups.


def create_group(arguments: argparse.Namespace) -> None:
    """Make a group."""
    _regroup(arguments, "create")


def add_members(arguments: argparse.Namespace) -> None:
    """Put some into a group."""
    _regroup(arguments, "add")


def delete_members(arguments: argparse.Namespace) -> None:
    """Take some out of a group; delete the group, where nobody is named."""
    group = arguments.group
    if arguments.members:
        _regroup(arguments, "remove")
        return
    end = _do(arguments, _show, do="group delete", group=group)
    members, lists = _count(end["members"], "member"), _count(end["lists"], "list")
    _say(arguments, f"{group} is deleted; it had {members}, and {lists} named it")


def _regroup(arguments: argparse.Namespace, what: str) -> None:
    group, members = arguments.group, arguments.members
    end = _do(arguments, _show, do=f"group {what}", group=group, members=members)
    _say(arguments, f"{group} has {_count(end['members'], 'member')}")


def list_groups(arguments: argparse.Namespace) -> None:
    """Print every group, or who is in one."""
    if arguments.group is None:
        _do(arguments, lambda row: _show(row["group"], row["members"]), do="group list")
    else:
        group = arguments.group
        _do(arguments, lambda row: _show(row["identifier"]), do="group members", group=group)


# Who may call, and who was told.


def show_permits(arguments: argparse.Namespace) -> None:
    """Print whom a terminal accepts now."""
    end = _do(arguments, _show_permit, do="permit show", identifier=arguments.identifier)
    if "policy" in end:
        _say(arguments, f"{end['identifier']} has no list in force: its policy is {end['policy']}")


def _show_permit(row: Row) -> None:
    columns = [row["caller"] or "", row["entry"]]
    if row["expires"] is not None:
        columns.append(f"{timedelta(seconds=row['expires'])} left")
    if row["uses"] is not None:
        columns.append(f"{_count(row['uses'], 'call')} left")
    if row["caller"] is None:
        columns.append("nobody is in it" if row["group"] == "empty" else "there is no such group")
    _show(*columns)


def who_knows(arguments: argparse.Namespace) -> None:
    """Print who was told where a terminal is."""
    asked = {name: getattr(arguments, name) for name in ("since", "most")}
    limits = {name: value for name, value in asked.items() if value is not None}
    _do(arguments, _show_told, do="who knows", identifier=arguments.identifier, **limits)


def _show_told(row: Row) -> None:
    where = host_port(row["address"], row["port"])
    at, until = (_second(row[name]) for name in ("at", "until"))
    _show(at, row["told"], where, row["entry"], row["session"], f"until {until}")


def _second(moment: str) -> str:
    return f"{datetime.fromisoformat(moment):%Y-%m-%dT%H:%M:%SZ}"


# Configuration.


def check_config(arguments: argparse.Namespace) -> None:
    """Say what is wrong with a role's configuration file, by what the role itself does with it."""
    role = import_module(f"broker.service.{ROLES[arguments.role]}")
    options: RoleOptions = role.Options()
    try:
        options.parseOptions([f"--config={arguments.file}"])
    except SystemExit as wrong:
        lines = (line.removeprefix(f"{arguments.role}: ") for line in str(wrong).splitlines())
        raise CannotAsk("\n".join(lines)) from None
    print(f"{printable(arguments.file)} is good")


# Passwords.


def _password(arguments: argparse.Namespace) -> str:
    """The password to set; from the command line never.

    :raises CannotAsk: there is none
    """
    if arguments.generate:
        return make_grant(os.urandom).password
    try:
        if arguments.password_file is not None:
            return read_password(arguments.password_file)
        if not sys.stdin.isatty():
            raise CannotAsk(
                "a password is asked for at a terminal, and standard input is none: name a"
                " --password-file, or say --generate"
            )
        asked = [ask_password(arguments.identifier + again) for again in ("", ", once more")]
    except InvalidFile as error:
        raise CannotAsk(str(error)) from None
    except NoAnswer:
        raise CannotAsk("no password was given") from None
    passwords = {found.password for found in asked if found is not None}
    if None in asked:
        raise CannotAsk("there is no terminal to ask for a password at: name a --password-file")
    if len(passwords) > 1:
        raise CannotAsk("the two are not the same: nothing was changed")
    return passwords.pop()


# The command line.

_ACCOUNT: Final = f"""\
examples:
  broker account add Ia                          ask for a password, twice
  broker account add Ia --generate               make one, and print it once
  broker account add Ia --password-file ia.txt   read it from a file of mode 0600
  broker account reset Ia                        another password; whoever used the old one is out
  broker account name add Ia taro@example.com    Ia may be called so too
  broker account remove Ia                       Ia goes, also from every list and group
  broker account list                            identifier, state, groups, names; parted by tabs

{EXIT_STATUS}"""
_GROUP: Final = f"""\
examples:
  broker group create @family Ia Ic   make a group; lists may name it: permit add --as Ib @family
  broker group add @family If         If too
  broker group delete @family Ic      Ic no longer; a session that rested on it ends
  broker group list                   every group, and how many are in it; parted by a tab
  broker group list @family           who is in it, one a line
  broker group delete @family         delete the group; every list that names it loses it

{EXIT_STATUS}"""
_PERMIT: Final = f"""\
Each line is somebody who may call ID now, the entry of its list that says so, and what is left of
its limits; parted by tabs. A group stands there as its members.

examples:
  broker permit show Ib
  broker permit show Ib | grep '@family'

{EXIT_STATUS}"""
_WHO_KNOWS: Final = f"""\
Each line is one time that somebody was told the address, the newest first: when (UTC), who, the
address, the entry of the list that permitted it, the session, and until when that lasts at the
most; parted by tabs.

examples:
  broker who-knows Ib
  broker who-knows Ib --since 2h --most 20
  broker who-knows Ib --since 2026-11-20T08:00

{EXIT_STATUS}"""
_CHECK: Final = """\
examples:
  broker check-config /etc/broker/broker.toml
  broker check-config --role broker-terminal terminal.toml

exit status: 0 the file is good, 1 it is not, 2 wrong usage
"""


def add_commands(commands: Any, permits: Any) -> None:
    """Add the operator's commands; each sets ``local`` to what runs it.

    :param permits: where ``show`` is added
    """
    _add_accounts(commands)
    _add_groups(commands)
    parser = _add(permits, "show", "print who may call a terminal now", show_permits, _PERMIT)
    _add_identifier(parser, "whose list it is: an identifier, or a name")
    parser = _add(
        commands, "who-knows", "print who was told where a terminal is", who_knows, _WHO_KNOWS
    )
    _add_identifier(parser, "whose address it is: an identifier, or a name")
    parser.add_argument(
        "--since",
        metavar="WHEN",
        type=argument(_since, "time"),
        help="only what was told since: 30m, 2h, 7d, or a date, 2026-11-20, or 2026-11-20T08:00,"
        " which is UTC unless it says otherwise",
    )
    parser.add_argument(
        "--most", metavar="NUMBER", type=argument(_positive, "number"), help="so many at the most"
    )
    parser = _add(
        commands,
        "check-config",
        "check a configuration file",
        check_config,
        _CHECK,
        "Nothing is opened, started or written.",
        requires_consent=False,
    )
    parser.add_argument("file", metavar="FILE", help="the file, as the role would be given it")
    parser.add_argument(
        "--role", choices=ROLES, default="broker", help="whose it is (default: %(default)s)"
    )


def _add_accounts(commands: Any) -> None:
    changes = _add_family(commands, "account", "who may log in", _ACCOUNT)
    for name, brief, run_it in (
        ("add", "make an account", add_account),
        ("reset", "give an account another password", reset_account),
    ):
        parser = _add(changes, name, brief, run_it, _ACCOUNT)
        _add_identifier(parser)
        source = parser.add_mutually_exclusive_group()
        source.add_argument(
            "--password-file",
            metavar="FILE",
            help="the file of the password, which nobody else may be able to read; without, you"
            " are asked",
        )
        source.add_argument(
            "--generate", action="store_true", help="make a password, and print it once"
        )
    parser = _add(changes, "remove", "remove an account", remove_account, _ACCOUNT)
    _add_identifier(parser)
    _add(changes, "list", "print every account", list_accounts, _ACCOUNT)
    names = _add_family(changes, "name", "further names of an account", _ACCOUNT, "name_change")
    for name, brief, run_it in (
        ("add", "give an account a further name", add_name),
        ("remove", "take one of its names from an account", remove_name),
    ):
        parser = _add(names, name, brief, run_it, _ACCOUNT)
        _add_identifier(parser)
        parser.add_argument(
            "name", metavar="NAME", type=argument(identifier, "name"), help="the name"
        )


def _add_groups(commands: Any) -> None:
    changes = _add_family(commands, "group", "groups of terminals", _GROUP)
    for name, brief, run_it, count in (
        ("create", "make a group", create_group, "*"),
        ("add", "put some into a group", add_members, "+"),
        ("delete", "take some out of a group, or delete it", delete_members, "*"),
    ):
        parser = _add(changes, name, brief, run_it, _GROUP)
        _add_group(parser)
        parser.add_argument(
            "members",
            metavar="ID",
            nargs=count,
            type=argument(identifier, "identifier"),
            help="a terminal",
        )
    parser = _add(changes, "list", "print every group, or who is in one", list_groups, _GROUP)
    _add_group(parser, nargs="?")


def _add_family(commands: Any, name: str, brief: str, epilog: str, chosen: str = "change") -> Any:
    """A command with commands of its own."""
    parser = commands.add_parser(
        name,
        help=brief,
        description=f"{brief[0].upper()}{brief[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser.add_subparsers(dest=chosen, metavar="change", required=True)


def _add(
    commands: Any,
    name: str,
    brief: str,
    run_it: Callable[[argparse.Namespace], None],
    epilog: str,
    more: str = "",
    *,
    requires_consent: bool = True,
) -> argparse.ArgumentParser:
    """A command.

    :param asks: it asks a broker
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=brief,
        description=f"{brief[0].upper()}{brief[1:]}. {more}".strip(),
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # --password must not be taken for --password-file
    )
    if requires_consent:
        parser.add_argument(
            "--admin",
            metavar="unix:PATH",
            default=ADMIN.default,
            type=argument(_path, "socket"),
            help="the broker's socket for the operator (default: %(default)s)",
        )
        parser.add_argument(
            "--json", action="store_true", help="print what the broker says, a JSON object a line"
        )
    parser.set_defaults(local=lambda arguments: run(run_it, arguments))
    return parser


def _add_identifier(parser: argparse.ArgumentParser, what: str = "whose account it is") -> None:
    parser.add_argument(
        "identifier", metavar="ID", type=argument(identifier, "identifier"), help=what
    )


def _add_group(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    parser.add_argument(
        "group", metavar="@GROUP", nargs=nargs, type=argument(_group, "group"), help="the group"
    )


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
    """A time in seconds since 1970: so long ago, or a date."""
    ago = _AGO.fullmatch(text)
    if ago is not None:
        return max(0, int(time.time()) - int(ago[1]) * _UNITS[ago[2]])
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("say 30m, 2h or 7d, or a date such as 2026-11-20T08:00") from None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0, int(when.timestamp()))


# Running one.


def run(command: Callable[[argparse.Namespace], None], arguments: argparse.Namespace) -> int:
    """Run one command.

    :return: the exit status
    """
    try:
        command(arguments)
        sys.stdout.flush()
    except Refused as error:
        return _fail(str(error), REFUSED if error.kind == "refused" else FAILED)
    except NoBroker as error:
        return _fail(str(error), UNREACHABLE)
    except CannotAsk as error:
        return _fail(str(error), FAILED)
    except BrokenPipeError:  # whoever read what is printed has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        return _fail(f"{error.strerror or error}", FAILED)
    except KeyboardInterrupt:
        return 130
    return 0


def _fail(text: str, status: int) -> int:
    for line in text.splitlines():
        print(f"broker: {printable(line)}", file=sys.stderr, flush=True)
    return status
