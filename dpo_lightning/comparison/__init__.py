"""Comparing models: who wins, by how much, and how sure that is."""
