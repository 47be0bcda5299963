"""Families: one a file, each final, behind ``fit / sample / log_prob``."""
