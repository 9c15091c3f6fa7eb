"""Inject faults while real processes carry streams of known content: `make chaos`."""
