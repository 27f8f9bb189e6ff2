"""Data, data sets and ready-made agents."""
