"""The node: a daemon on the GPU box that dials out to the relay and forwards to its upstreams."""
