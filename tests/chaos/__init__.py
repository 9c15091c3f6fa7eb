"""Random faults against streams of known content, in real processes: `make chaos`."""
