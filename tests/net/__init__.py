"""The tests of broker.net and broker.messages."""
