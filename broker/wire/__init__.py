"""Bytes to messages and back: the text protocol of ``docs/protocol.md``.

``grammar``, ``message`` and ``decoder`` are pure; ``stream`` and ``datagram`` are the thin
Twisted protocols over them, and ``conversation`` keeps requests, replies and questions in order.
"""
