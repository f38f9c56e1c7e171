"""The three ways a call begins, tested."""
