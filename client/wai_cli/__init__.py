"""The `wai` command. Only this package reads argv and the environment."""
