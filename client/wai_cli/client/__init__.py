"""How commands reach a relay: which one, by which way, and its admin API."""
