"""The version of this project; `pyproject.toml` reads it from here.

Reading it from the installed distribution with `importlib.metadata` would take 15 ms at each start.
"""

VERSION = "0.1.0"
