"""What the server knows, as plain data and decisions on it; time is an argument."""
