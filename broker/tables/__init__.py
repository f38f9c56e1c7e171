"""The server's state as plain data, and decisions on it. Pure: the time is an argument."""
