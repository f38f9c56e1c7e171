"""What keeps a role from starting."""

from __future__ import annotations


class CannotStart(SystemExit, Exception):
    """A role can't start; the text is the one line that says why.

    As an ``Exception`` it makes ``twistd`` remove the pid file and tell the process that waits for
    a daemon; as a ``SystemExit`` it then ends the process with status 1 and that line. Any other
    exception would end it with a traceback.
    """
