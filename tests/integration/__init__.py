"""The product in real processes, over real sockets of the loopback interface."""
