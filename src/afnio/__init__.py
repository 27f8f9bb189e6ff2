"""Afnio."""
