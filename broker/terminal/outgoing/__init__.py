"""Connections that a terminal opens to another."""
