"""Where this host is."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

from broker.nat.gateway import NoRouter, find_gateway, is_public, local_address, parse_routes

HEAD = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"


def number(address: str) -> str:
    """An address as the kernel shows it."""
    octets = bytes(int(part) for part in address.split("."))
    return f"{int.from_bytes(octets, sys.byteorder):08X}"


def route(
    gateway: str, metric: int = 0, flags: str = "0003", to: str = "0.0.0.0", mask: str = "0.0.0.0"
) -> str:
    """A line of the kernel's table."""
    return (
        f"eth0\t{number(to)}\t{number(gateway)}\t{flags}\t0\t0\t{metric}\t{number(mask)}\t0\t0\t0\n"
    )


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (route("192.168.1.1"), "192.168.1.1"),
        (route("192.168.1.1", 600) + route("10.0.0.1", 100), "10.0.0.1"),
        (route("192.168.1.1", 100) + route("10.0.0.1", 100), "192.168.1.1"),
        (route("192.168.1.1", to="10.0.0.0", mask="255.0.0.0"), None),
        (route("192.168.1.1", to="0.0.0.0", mask="128.0.0.0"), None),
        (route("0.0.0.0", flags="0001"), None),
        (route("192.168.1.1", flags="0002"), None),
        (route("192.168.1.1", flags="0203"), None),
        ("nonsense\n\n" + route("192.168.1.1"), "192.168.1.1"),
        ("eth0 zz 0 0003 0 0 0 0\n" + route("192.168.1.1"), "192.168.1.1"),
        ("eth0 0 FFFFFFFFFF 0003 0 0 0 0\n", None),
        ("", None),
    ],
)
def test_routes(lines: str, expected: str | None) -> None:
    """The default route through a router, that is up, with the smallest metric."""
    assert parse_routes(HEAD + lines) == expected


def test_file(tmp_path: Path) -> None:
    """It is read from a file; why it can't be is told."""
    path = tmp_path / "route"
    with pytest.raises(NoRouter, match="can't be read"):
        find_gateway(path)
    path.write_text(HEAD)
    with pytest.raises(NoRouter, match="no IPv4 route"):
        find_gateway(path)
    path.write_text(HEAD + route("192.168.1.1"))
    assert find_gateway(path) == "192.168.1.1"
    path.write_bytes(b"\xff")
    with pytest.raises(NoRouter, match="can't be read"):
        find_gateway(path)


def test_no_way() -> None:
    """The address from which the router would be spoken to, unless it can't be."""
    assert local_address("127.0.0.1") == "127.0.0.1"
    with patch("socket.socket") as made:
        made.return_value.__enter__.return_value.connect.side_effect = OSError(
            errno.ENETUNREACH, "Network is unreachable"
        )
        with pytest.raises(NoRouter, match=r"192\.0\.2\.1: Network is unreachable"):
            local_address("192.0.2.1")


@pytest.mark.parametrize(
    ("addresses", "public"),
    [
        ("11.0.113.1 8.8.8.8", True),
        ("192.168.1.1 10.0.0.1 172.16.0.1 100.64.0.1 169.254.0.1 127.0.0.1", False),
        ("203.0.113.1 224.0.0.1 240.0.0.1 0.0.0.0 router", False),
    ],
)
def test_public(addresses: str, public: bool) -> None:
    """Private, shared and reserved addresses are not public."""
    assert {is_public(address) for address in addresses.split()} == {public}
    assert not is_public("")
