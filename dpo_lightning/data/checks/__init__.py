"""Checks of a set of examples before training: near-duplicates, languages, lengths and answers, for `check-data`."""
