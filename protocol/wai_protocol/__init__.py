"""The sans-I/O core of the protocol `wai/1`, used by relay and node. See `protocol/SPEC.md`.

Import from its modules. Nothing is re-exported here, because `wai --help` needs only the errors,
and importing the session as well would take 25 ms.
"""
