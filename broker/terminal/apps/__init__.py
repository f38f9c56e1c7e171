"""What runs over a channel: files and pipes."""
