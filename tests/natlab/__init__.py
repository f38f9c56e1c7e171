"""Calls across real address translation: routers in network namespaces."""
