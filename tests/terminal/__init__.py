"""The tests of broker.terminal."""
