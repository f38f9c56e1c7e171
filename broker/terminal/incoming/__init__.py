"""Connections that a terminal takes from another."""
