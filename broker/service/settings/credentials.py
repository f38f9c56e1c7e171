"""Where a password comes from: a file, the keyring of ``broker login``, or a person.

Never the command line or the environment, which others can see (I18). A kept password names its
mediator, and is sent to no other.
"""

from __future__ import annotations

import getpass
import json
import os
import signal
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from broker.files import PRIVATE, InvalidFile, check_private_folder, read_private, write_file
from broker.messages.grammar import BLANKS, FIELDS
from broker.messages.message import printable
from broker.terminal.apps.files import safe_name

#: More bytes than the file of a password has.
_FILE_BYTES: Final = 16384


@dataclass(frozen=True, slots=True)
class FoundPassword:
    """A password.

    :ivar password: the password itself, which no repr shows
    :ivar file: the file it is from; ``None`` if a person typed it
    """

    password: str = field(repr=False)
    file: str | None


class NoPasswordGiven(Exception):
    """A person was asked for a password, and gave none."""


class Keyring:
    """The passwords that a user keeps: a file for each identifier at each mediator.

    The files are in ``passwords``, in the user's configuration folder. Only the user can read them.
    """

    def __init__(self, folder: Path) -> None:
        """
        :param folder: the configuration folder of broker
        """
        self._folder = folder

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Keyring:
        """The keyring of the user who has this environment."""
        configuration = environ.get("XDG_CONFIG_HOME", "")
        if not os.path.isabs(configuration):  # the XDG specification says to ignore it
            home = environ.get("HOME") or os.path.expanduser("~")
            configuration = os.path.join(home, ".config")
        return cls(Path(configuration) / "broker")

    def path(self, identifier: str, mediator: str) -> Path:
        """The file for a password.

        :param mediator: the mediator's name on the command line: ``tls:signal.example.com:1202``
        """
        name = f"{safe_name(identifier)}.json"
        return self._folder / "passwords" / safe_name(mediator) / name

    def read(self, identifier: str, mediator: str) -> str | None:
        """The password that is kept, or ``None``.

        :raises InvalidFile: others could read it, or it is damaged
        """
        path = self.path(identifier, mediator)
        try:
            data = read_private(str(path), _FILE_BYTES)
            for folder in self._folders(path):
                check_private_folder(folder)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return None
        except OSError as error:
            raise InvalidFile(f"{path}: {error.strerror}") from None
        try:
            kept = json.loads(data)
            if (kept["identifier"], kept["mediator"]) != (identifier, mediator):
                return None  # another's, whatever its name
            return check_password(kept["password"])
        except (ValueError, TypeError, KeyError, AttributeError):
            raise InvalidFile(f"{path}: is damaged: do broker login again") from None

    def keep(self, identifier: str, mediator: str, password: str) -> Path:
        """Keep a password in place of an earlier one; it is on the disk when this returns.

        :return: its file
        :raises InvalidFile: others could read or change it there
        :raises OSError: it can't be written
        """
        path = self.path(identifier, mediator)
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        for folder in self._folders(path):
            folder.mkdir(mode=0o700, exist_ok=True)
            check_private_folder(folder)
        kept = {"identifier": identifier, "mediator": mediator, "password": password}
        text = json.dumps(kept, ensure_ascii=False) + "\n"
        write_file(path, text.encode("utf-8"), mode=PRIVATE, replace=True)
        return path

    def forget(self, identifier: str, mediator: str) -> bool:
        """Remove the password that is kept, if any.

        :return: whether there was one
        :raises OSError: it can't be removed
        """
        path = self.path(identifier, mediator)
        try:
            path.unlink()
        except (FileNotFoundError, NotADirectoryError):
            return False
        with suppress(OSError):  # others' are in it
            path.parent.rmdir()
        return True

    def _folders(self, path: Path) -> list[Path]:
        return [self._folder, path.parent.parent, path.parent]


class PasswordSource:
    """Where the password of one terminal comes from. It is looked up again for each use."""

    def __init__(self, identifier: str, mediator: str, file: str | None, keyring: Keyring) -> None:
        """
        :param file: the file with the password; ``None``: use the keyring
        """
        self._identifier = identifier
        self._mediator = mediator
        self._file = file
        self._keyring = keyring

    def find(self) -> FoundPassword | None:
        """The password.

        :raises InvalidFile: it can't be read
        """
        if self._file is not None:
            return FoundPassword(read_password(self._file), self._file)
        password = self._keyring.read(self._identifier, self._mediator)
        if password is None:
            return None
        return FoundPassword(password, str(self._keyring.path(self._identifier, self._mediator)))

    def __call__(self) -> str | None:
        """The password, as ``TerminalSettings`` takes it."""
        found = self.find()
        return None if found is None else found.password


def read_password(path: str) -> str:
    """The password in a file: its only line, without blanks at the ends.

    :raises InvalidFile: others can read it, or it holds none
    """
    try:
        text = read_private(path, _FILE_BYTES).decode("utf-8")
        return check_password(text.removesuffix("\n").removesuffix("\r"))
    except OSError as error:
        raise InvalidFile(f"{path}: {error.strerror}") from None
    except InvalidFile:
        raise
    except ValueError:
        raise InvalidFile(f"{path}: holds no password: one line of 1 to 512 characters") from None


def ask_password(identifier: str, what: str = "Password") -> FoundPassword | None:
    """Ask the person at the process's terminal for a password, which is not shown.

    It blocks until there is an answer.

    :param what: what the prompt calls it
    :return: ``None`` if there is no terminal to ask at
    :raises NoPasswordGiven: the person gave up
    :raises InvalidFile: this can be no password
    """
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return None
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", getpass.GetPassWarning)  # the password would be visible
            answer = getpass.getpass(f"{what} of {printable(identifier)}: ")
        return FoundPassword(check_password(answer), None)
    except (KeyboardInterrupt, EOFError):
        raise NoPasswordGiven from None
    except getpass.GetPassWarning:
        return None
    except ValueError as error:
        raise InvalidFile(f"this can be no password: {error}") from None
    finally:
        signal.signal(signal.SIGINT, before)


def check_password(text: str) -> str:
    """A password as it can be sent: blanks at the ends would not arrive, and are dropped.

    :raises ValueError: it can't be one
    """
    text = text.strip(BLANKS)
    if not text.replace("\u3000", "").isprintable():
        raise ValueError("a password holds a character that cannot be seen")
    return FIELDS["Password"](text)
