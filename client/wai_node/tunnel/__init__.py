"""The connection to the relay: dial, handshake, keep the session alive, dial again after a loss."""
