"""Ports open to the outside, tested."""
