"""The tests of broker.service."""
