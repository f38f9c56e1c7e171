"""The tests of broker.store."""
