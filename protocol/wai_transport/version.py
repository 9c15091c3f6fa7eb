"""The version of this project, for `pyproject.toml`, relay, node and command line.

It is a constant because asking the installed distribution (`importlib.metadata`) would add 15 ms to
every start. CONTRIBUTING.md says how a release sets it.
"""

VERSION = "0.1.0"  # without an annotation: hatchling's pattern reads this line
