"""One peer over TCP, TLS or UDP: connections, dialogues, timers. Knows ``messages`` alone."""
