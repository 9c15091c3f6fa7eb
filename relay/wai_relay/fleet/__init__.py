"""What serves: nodes and their tunnels, cloud providers, and how nodes come in."""
