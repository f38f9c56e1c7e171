"""What is said: grammar, statements, messages, framing, signatures; pure, without Twisted.

``docs/protocol.md`` is the reference. Nothing here knows a connection, a table or a clock.
"""
