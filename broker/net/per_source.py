"""How many connections one source may hold (I15)."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from twisted.internet.interfaces import IAddress


class PerSourceLimits:
    """Counts the connections of each source address.

    :ivar unauthenticated: how many of them may not have logged in yet
    :ivar total: how many there may be in all
    """

    def __init__(self, unauthenticated: int = 20, total: int = 200) -> None:
        self.unauthenticated = unauthenticated
        self.total = total
        self._counts: dict[str, tuple[int, int]] = {}  # not logged in, all

    def __len__(self) -> int:
        return len(self._counts)

    def opened(self, source: str) -> bool:
        """Count one more connection; ``False``, and nothing counted, where the limit is reached."""
        unauthenticated, total = self._counts.get(source, (0, 0))
        if unauthenticated >= self.unauthenticated or total >= self.total:
            return False
        self._counts[source] = (unauthenticated + 1, total + 1)
        return True

    def authenticated(self, source: str) -> None:
        """One of the source's connections has logged in."""
        unauthenticated, total = self._counts[source]
        self._counts[source] = (unauthenticated - 1, total)

    def closed(self, source: str, *, authenticated: bool) -> None:
        """One of the source's connections is gone."""
        unauthenticated, total = self._counts[source]
        if total == 1:
            del self._counts[source]
        else:
            self._counts[source] = (unauthenticated - (not authenticated), total - 1)


def source_of(address: IAddress | None) -> str | None:
    """The source that a connection counts for: an IPv4 address or an IPv6 /56.

    ``None`` for loopback and for what is no IP address: those are not limited.
    """
    host = getattr(address, "host", None)
    if not isinstance(host, str):
        return None
    try:
        ip = ip_address(host.partition("%")[0])
    except ValueError:
        return None
    if ip.version == 6 and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if ip.is_loopback:
        return None
    return str(ip) if ip.version == 4 else str(ip_network((ip, 56), strict=False))
