"""Ports opened in the router that one is behind, by PCP, NAT-PMP and UPnP (IPv4).

``mapper`` is what others use; ``packets`` and ``place`` are pure. What a router says is its claim
and nothing more: whoever is told an address compares it with what a server sees, and tries it.
Pinholes for IPv6 (by PCP or UPnP) are not made.
"""
