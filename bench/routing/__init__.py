"""Which routing policy gives the soonest first token? A simulation on real traces of requests."""
