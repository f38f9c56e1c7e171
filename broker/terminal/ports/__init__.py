"""Ports of a terminal that its router opens to the outside."""
