"""A signalling server through which terminals find and call each other, and only those that the
called party has permitted: the mediator checks the permit and hands out what a call needs, the
resolver knows where a terminal can be reached, and the terminal library places and answers calls
from within a Twisted application.
"""

__version__ = "0.1.0"
