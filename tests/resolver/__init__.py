"""The tests of broker.resolver, and of the link that it is asked over."""
