"""The checks of `wai doctor`, one module for each kind."""
