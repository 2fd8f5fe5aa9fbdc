"""Readers: rows of files and of data sets of the hub, each with its origin."""
