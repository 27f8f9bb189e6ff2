"""What is measured in a fresh process; see `benchmarks.child`."""
