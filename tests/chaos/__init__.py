"""Faults against streams of known content, in real processes: `make chaos`."""
