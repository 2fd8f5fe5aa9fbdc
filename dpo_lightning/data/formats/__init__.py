"""Formats of rows: each recognizes the rows of one tool or data set and converts them to this package's columns."""
