"""Studies: whole jobs on an agent, rows and a metric, such as `afnio.evaluate` and `afnio.optimize`."""
