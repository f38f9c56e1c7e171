"""The two addresses of a connection: where the peer is, and where it reached us."""

from __future__ import annotations

from broker.net.connection import PeerConnection


def remote_host_of(stream: PeerConnection) -> str:
    """The peer's IP address; loopback where there is none (a local socket)."""
    transport = stream.transport
    host = getattr(transport.getPeer(), "host", None) if transport is not None else None
    return str(host).partition("%")[0] if host else "127.0.0.1"


def remote_port_of(stream: PeerConnection) -> int | None:
    """The peer's port; ``None`` where there is none (a local socket)."""
    transport = stream.transport
    port: int | None = getattr(transport.getPeer(), "port", None) if transport is not None else None
    return port


def local_host_of(stream: PeerConnection) -> str:
    """Our own address on a connection; the empty text where there is none."""
    transport = stream.transport
    host = getattr(transport.getHost(), "host", None) if transport is not None else None
    return str(host).partition("%")[0] if host else ""
