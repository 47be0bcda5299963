"""The command line: fit, score, sample, compare, card."""

from probgen.cli.commands import app, main

__all__ = ["app", "main"]
