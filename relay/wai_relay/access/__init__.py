"""Authentication of callers and admins: API keys, admins, sign-ins, and the audit log."""
