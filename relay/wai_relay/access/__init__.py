"""Who may call and who may change things: API keys, admins, their sign-ins, the audit log."""
