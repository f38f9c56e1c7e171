"""The tests of broker.net.tls."""
