"""The APIs that callers speak: one object a dialect, one file an object, and their registry.

`dialect` says what a dialect is, `registry` which there are. Everything here is pure.
"""
