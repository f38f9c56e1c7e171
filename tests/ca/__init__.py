"""The tests of broker.ca."""
