"""Sweeps: a run for each combination of values, each evaluated, and a report that compares them."""
