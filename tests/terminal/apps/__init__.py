"""What runs over a channel, tested."""
