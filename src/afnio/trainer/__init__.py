"""Trainer: the ready-made loop."""
