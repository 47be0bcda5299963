"""Counting models of symbol sequences: interpolated Kneser-Ney."""

from probgen.models.ngram.family import NGram

__all__ = ["NGram"]
