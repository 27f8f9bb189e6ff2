"""The kit: what tests of several folders share. A helper with one folder stays in that folder."""
