"""What ``twistd`` offers once broker is installed: one service for each role."""

from twisted.application.service import ServiceMaker

mediator = ServiceMaker(
    "broker",
    "broker.service.mediator",
    "Mediate calls between terminals that permit them.",
    "broker",
)

resolver = ServiceMaker(
    "broker resolver",
    "broker.service.resolver",
    "Keep terminals' addresses and trigger those that are idle.",
    "broker-resolver",
)

terminal = ServiceMaker(
    "broker terminal",
    "broker.service.terminal",
    "Run a terminal that answers and places calls.",
    "broker-terminal",
)
