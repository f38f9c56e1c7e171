"""Ports opened in the router in front of this host, by PCP, NAT-PMP and UPnP (IPv4).

``mapper`` is what others use; ``packets`` and ``gateway`` decide nothing. What a router says is its
claim and nothing more: compare its address with what a server sees, and connect to the port.
Pinholes for IPv6 (by PCP or UPnP) are not made.
"""
