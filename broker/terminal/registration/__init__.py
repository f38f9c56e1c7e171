"""A terminal's registration at its mediator: client, login, notices, idle connection, keepalives."""
