"""One module for each command group of `wai`."""
