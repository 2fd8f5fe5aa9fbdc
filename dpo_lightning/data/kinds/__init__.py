"""Kinds of rows: each checks the rows of a file and turns them into examples of one kind."""
