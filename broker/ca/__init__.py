"""A small private certificate authority."""
