"""Readers: bytes of files and hub sets into rows, each with its origin."""
