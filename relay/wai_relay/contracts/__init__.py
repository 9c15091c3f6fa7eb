"""What the relay's rooms share: plain values and small interfaces. It imports none of them."""
