"""The encrypted channel of one call: handshake, records, and the calls in progress."""
