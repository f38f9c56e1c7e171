"""A terminal's registration: client, login, notices, idle connection, keepalives."""
