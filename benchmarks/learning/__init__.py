"""Learning, measured: does a prompt get better, by how much, at what price, with which optimizer."""
