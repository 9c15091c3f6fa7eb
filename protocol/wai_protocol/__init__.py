"""`wai/1`: the sans-I/O core that relay and node share. `protocol/SPEC.md` explains the wire.

Import from its modules. Nothing is re-exported here: `wai --help` needs the errors alone, and would
pay 25 ms for the session behind them.
"""
