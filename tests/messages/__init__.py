"""The tests of broker.messages."""
