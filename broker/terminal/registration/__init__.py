"""A terminal's line to its server: login, registration, notices, keepalives."""
