"""Certificates from an ACME authority (RFC 8555), got and renewed without anybody's help."""
