"""The connections that a call makes, tested."""
