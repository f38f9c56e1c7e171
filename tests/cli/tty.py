"""A standard stream that is a terminal."""

import io


class Tty(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True
