"""The mediator: registration, and the call (permit check, look-up, reach, status, grant)."""
