"""The commands of `wai`, one module each."""
