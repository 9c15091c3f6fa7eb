"""Inference engines: what is on this machine, which one fits it, and how one is installed."""
