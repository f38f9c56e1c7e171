"""The tests of broker.wire."""
