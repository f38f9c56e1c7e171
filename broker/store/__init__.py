"""Stores: they make changes durable, and fill the tables at the start."""
