"""How commands are told what to do: values, settings, where data lies."""
