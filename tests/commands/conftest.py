"""Fixtures of the tests of commands."""

from support.fake_slurm import slurm

__all__ = ["slurm"]
