"""Diffusion models in trigonometric time."""

from probgen.models.diffusion.bound import VariationalBound
from probgen.models.diffusion.family import Diffusion

__all__ = ["Diffusion", "VariationalBound"]
