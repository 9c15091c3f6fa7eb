"""Deployments on inference servers that are there: their models, fetched by their own API."""
