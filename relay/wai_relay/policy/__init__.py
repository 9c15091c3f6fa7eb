"""Who goes where, and who waits: pure rules and state machines, told the time."""
