"""Variational autoencoders."""

from probgen.models.vae.diagnostics import Diagnosis
from probgen.models.vae.family import VAE, Code

__all__ = ["VAE", "Code", "Diagnosis"]
