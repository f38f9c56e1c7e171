"""The channel of a call, tested."""
