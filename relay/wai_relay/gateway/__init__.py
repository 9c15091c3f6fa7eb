"""A caller's request on its way to an answer: understood, placed, forwarded, recorded."""
