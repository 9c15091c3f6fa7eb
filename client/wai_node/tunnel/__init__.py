"""The way to the relay: find it, dial it, prove who we are, and stay connected."""
