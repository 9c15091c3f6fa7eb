"""Managed inference servers: one llama-server process for each model deployed on this node.

llama-server's router mode is not used. Measured with b10434 and two tiny models: the router starts
a process per model too, and adds its own (25 MB) and a proxy hop of 1.0 ms to each request
(one-token completions took 1.8 ms through it, 0.8 ms without). It can't run one model with two
contexts at the same time, which a swap without dropped requests needs, and if it crashes every
model is gone.
"""
