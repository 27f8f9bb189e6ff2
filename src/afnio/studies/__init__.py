"""Studies: whole jobs on an agent, rows and a metric. `afnio.optimize` and `afnio.headroom` are their public names."""
