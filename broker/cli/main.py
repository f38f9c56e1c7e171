"""The ``broker`` command.

Exit status: 0 done, 1 failed, 2 wrong usage, 3 the server can't be reached, 4 refused, and 128 plus
the number of the signal that interrupted it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Final

import broker
from broker.cli import admin, ca, call, permits, terminal
from broker.cli.output import DONE, explain
from broker.cli.table import EXIT_STATUS, Command, CommandGroup, WrongUsage

#: Every command.
COMMANDS: Final[tuple[Command | CommandGroup, ...]] = (
    *terminal.COMMANDS,
    permits.COMMAND,
    call.COMMAND,
    *admin.COMMANDS,
    ca.COMMAND,
)

EXAMPLES: Final = f"""\
examples:
  broker login --as Ib                  keep Ib's password for the commands that follow
  broker permit add --as Ib Ia          let Ia call Ib
  broker permit add --as Ib --uses 1 If let If call it once
  broker permit list --as Ib            who may call Ib
  broker permit add --local Ib.consent Ia
                                        let Ia call a terminal that is asked for each call
  broker disclosures --as Ib            who was told where Ib is
  broker call --as Ia Ib --send a.wav   send a file to Ib; done when Ib has it
  broker call --as Ia Ib <in >out       the same through pipes; what Ib sends goes to out
  broker call --as Ia Ib --connect-back --send a.wav
                                        with Ib's call password, no permit: Ib connects to you

{EXIT_STATUS}"""


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="broker",
        description="Act as a terminal: say who may call it, register where it is, call another.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"broker {broker.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    for row in COMMANDS:
        row.add_to(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name.

    :return: the exit status
    """
    parser = make_parser()
    arguments = parser.parse_args(argv)
    try:
        arguments.run(arguments)
        sys.stdout.flush()
    except WrongUsage as error:
        parser.error(str(error))
    except (Exception, KeyboardInterrupt) as error:
        return explain(error)
    return DONE


if __name__ == "__main__":
    sys.exit(main())
