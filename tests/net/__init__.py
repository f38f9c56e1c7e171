"""The tests of broker.net."""
