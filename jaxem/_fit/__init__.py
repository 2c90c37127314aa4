"""The algorithm: one step, one loop, and the ways to run it."""
