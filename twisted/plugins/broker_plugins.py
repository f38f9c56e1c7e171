"""The roles as plugins of ``twistd``."""

from twisted.application.service import ServiceMaker

mediator = ServiceMaker(
    "broker",
    "broker.service.mediator",
    "The mediator: connects terminals with the callers that they permit.",
    "broker",
)

resolver = ServiceMaker(
    "broker resolver",
    "broker.service.resolver",
    "The resolver: keeps the addresses of terminals, in a process of its own.",
    "broker-resolver",
)

terminal = ServiceMaker(
    "broker terminal",
    "broker.service.terminal",
    "A terminal: stays registered and takes calls.",
    "broker-terminal",
)
