"""The mediator, in conversations over connections in memory and a clock that moves when told."""
