"""Which version this is. `pyproject.toml` takes it from here: asking the installed distribution
would cost every start of relay and node 15 ms (`importlib.metadata` reads e-mail headers)."""

VERSION = "0.1.0"
