"""The registry of connections: which each identifier has, and over which one it is reached.

Over the *active* connection a terminal is asked and notified: the one that registered last.
``wakeup.TerminalReach`` waits for one where there is none.
"""

from __future__ import annotations

from math import inf
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from broker.mediator.connection import TerminalConnection, seen_ip
from broker.messages.errors import CalleeNotFound
from broker.messages.grammar import DEFAULT_EXPIRES, NOTIFY
from broker.messages.message import Message, printable
from broker.messages.statements import SUPERSEDED
from broker.net.peer_address import remote_host_of
from broker.tables.locations import Binding, Contact

#: Connections one identifier may have; one more closes the oldest that is not the active one.
CONNECTIONS_AN_IDENTIFIER: Final = 5


class ConnectionRegistry:
    """Who is connected, and over which connection each identifier is reached.

    :ivar last_registration: the number of the last registration, or return, of a connection. What
        was looked up before a connection got its own number may be out of date.
    """

    log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self.last_registration = 0
        self._clock = clock
        self._connections: dict[str, tuple[TerminalConnection, ...]] = {}  # oldest first
        self._active: dict[str, TerminalConnection] = {}
        self._waiting: dict[str, list[Deferred[TerminalConnection]]] = {}

    # What happens to a connection.

    def bind(self, connection: TerminalConnection, identifier: str) -> None:
        """A connection has logged in."""
        connection.log_in(identifier)
        connections = self._connections.get(identifier, ())
        if len(connections) >= CONNECTIONS_AN_IDENTIFIER:
            active = self._active.get(identifier)
            oldest = next(one for one in connections if one is not active)
            connections = tuple(one for one in connections if one is not oldest)
            oldest.stream.close()
        self._connections[identifier] = (*connections, connection)

    def registered(self, connection: TerminalConnection, address: Contact | None) -> None:
        """A connection has registered: it is the active one from now on.

        :param address: the address, unless it is where the terminal's datagrams come from
        """
        identifier = connection.identifier
        if address is not None:
            connection.address = address
        self.last_registration += 1
        connection.registration_number = self.last_registration
        displaced = self._active.get(identifier)
        self._active[identifier] = connection
        if displaced is not None and displaced is not connection:
            displaced.stream.send(Message(NOTIFY, SUPERSEDED))
            self.log.warn(
                "{identifier} is now reached over a connection from {new}, previously from {old}",
                identifier=printable(identifier),
                new=remote_host_of(connection.stream),
                old=remote_host_of(displaced.stream),
            )
        for waiting in self._waiting.pop(identifier, ()):
            waiting.callback(connection)

    def withdrawn(self, identifier: str) -> None:
        """The address of a terminal is withdrawn: it has no active connection now."""
        self._active.pop(identifier, None)
        for connection in self._connections.get(identifier, ()):
            connection.address = connection.key = None

    def lost(self, connection: TerminalConnection) -> TerminalConnection | None:
        """A connection is gone.

        :return: the connection that becomes the active one in its place, if one does
        """
        identifier = connection.identifier
        connections = tuple(
            one for one in self._connections.get(identifier, ()) if one is not connection
        )
        if connections:
            self._connections[identifier] = connections
        else:
            self._connections.pop(identifier, None)
        if self._active.get(identifier) is not connection:
            return None
        del self._active[identifier]
        return self._return_to_newest(identifier)

    def _return_to_newest(self, identifier: str) -> TerminalConnection | None:
        """The connection that registered last, of those that are left, becomes the active one."""
        registered = [
            one
            for one in self._connections.get(identifier, ())
            if one.address is not None or one.key is not None
        ]
        if not registered:
            return None
        newest = max(registered, key=lambda one: one.registration_number)
        self._active[identifier] = newest
        self.last_registration += 1
        # A new number: what was looked up until now is the address of the connection that is gone.
        newest.registration_number = self.last_registration
        return newest

    # Who is connected.

    def all(self) -> list[TerminalConnection]:
        """All connections that have logged in."""
        return [
            connection for connections in self._connections.values() for connection in connections
        ]

    def active(self, identifier: str) -> TerminalConnection | None:
        """The connection over which a terminal is reached now, if it has one."""
        return self._active.get(identifier)

    def usable(self, identifier: str) -> TerminalConnection | None:
        """The active connection of a terminal, unless it has none or that is closing."""
        connection = self._active.get(identifier)
        return connection if connection is not None and connection.stream.connected else None

    def connections(self, identifier: str) -> tuple[TerminalConnection, ...]:
        """All connections of an identifier, oldest first."""
        return self._connections.get(identifier, ())

    def source_of(self, identifier: str) -> Binding:
        """Where the active connection of a terminal that registers by UDP comes from.

        It stands for where its datagrams come from until the first of them has arrived.

        :raises CalleeNotFound: it has no active connection, or does not register by UDP
        """
        connection = self._active.get(identifier)
        if connection is None or connection.key is None:
            raise CalleeNotFound
        host, now = str(seen_ip(connection)), self._clock.seconds()
        return Binding(Contact(host, connection.port, now, DEFAULT_EXPIRES), inf)

    # Who waits for a connection.

    def next_active(self, identifier: str) -> Deferred[TerminalConnection]:
        """Wait for a terminal to register, until ``stop_waiting``.

        :return: fires with the connection that registers next
        """
        waiting: Deferred[TerminalConnection] = Deferred()
        self._waiting.setdefault(identifier, []).append(waiting)
        return waiting

    def stop_waiting(self, identifier: str, waiting: Deferred[TerminalConnection]) -> None:
        """Take back ``next_active``; nothing where it has fired."""
        others = self._waiting.get(identifier, [])
        if waiting in others:
            others.remove(waiting)
            if not others:
                del self._waiting[identifier]

    def stop(self) -> None:
        """Close every connection."""
        for connection in self.all():
            connection.stream.close()
