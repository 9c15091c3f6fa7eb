"""Managed inference servers: one llama-server for each deployed model, kept as this node wants it.

One process per model, not llama-server's router mode. Measured with b10434 and two tiny models: the
router starts a process per model too, and adds one of its own (25 MB) and a proxy hop of 1.0 ms
to each request (one-token completions: 1.8 ms through it, 0.8 ms direct). It can't hold two
contexts of one model beside each other, which a swap without dropped requests needs, and its crash
takes every model with it.
"""
