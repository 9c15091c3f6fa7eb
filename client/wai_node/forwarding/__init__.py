"""Streams from the relay, carried to the upstreams beside the node, and the answers back."""
