"""The relay: the callers' edge, the gateway, the nodes' tunnels, storage and the admin API."""
