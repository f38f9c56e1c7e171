"""The tests of broker.tables."""
