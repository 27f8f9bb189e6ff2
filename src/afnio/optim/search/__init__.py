"""Optimizers that try several candidates before they change a prompt."""
