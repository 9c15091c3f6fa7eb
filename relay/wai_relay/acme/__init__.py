"""Obtain and renew certificates automatically from an ACME certificate authority (RFC 8555)."""
