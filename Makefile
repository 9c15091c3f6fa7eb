# Two commands: `make run` and `make test`. Everything they need goes into .venv.
PYTHON ?= python3
