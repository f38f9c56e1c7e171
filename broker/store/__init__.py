"""Where changes become durable, and from where the tables are filled at the start."""
