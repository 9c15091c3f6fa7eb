"""The commands' connection to a relay: find it, connect to it, call its admin API."""
