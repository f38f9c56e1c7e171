"""TLS for both ends of a connection: contexts, transport, certificates, and errors in words."""
