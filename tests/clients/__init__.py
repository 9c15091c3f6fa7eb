"""Clients that people have, as they are installed from their indexes, against the relay."""
