"""The calls that come in, tested."""
