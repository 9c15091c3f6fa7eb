"""The small chat model that `wai up` serves where the box has no inference server."""
