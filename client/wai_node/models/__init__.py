"""Models: found on the hub, read by their headers, weighed against the hardware, downloaded."""
