"""Judges: what decides which of two answers is the better one."""
