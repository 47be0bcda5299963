"""Finite mixtures of any emission."""

from probgen.models.mixture.family import Mixture

__all__ = ["Mixture"]
