"""The one `wai` command: it reads argv and the environment, and exits."""
