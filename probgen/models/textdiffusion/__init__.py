"""Discrete diffusion over sequences of symbols, which are masked at random and filled in again."""

from probgen.models.textdiffusion.bound import MaskingBound
from probgen.models.textdiffusion.family import TextDiffusion

__all__ = ["MaskingBound", "TextDiffusion"]
