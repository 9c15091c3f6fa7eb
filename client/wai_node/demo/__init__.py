"""The small chat model that `wai up` serves if it finds no inference server on the machine."""
