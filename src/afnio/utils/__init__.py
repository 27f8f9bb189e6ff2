"""Data loading, datasets and ready-made agents."""
