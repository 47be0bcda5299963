"""Variational inference on somebody's Pyro program: its own store, its structure, its ELBO recorded and played back."""

from probgen.svi.graph import Graph, gradients, record
from probgen.svi.loss import NegativeELBO
from probgen.svi.program import Program, is_latent, sites_of
from probgen.svi.rows import guide_terms, model_terms, split_terms
from probgen.svi.structure import LatentSite, Structure, check_guide, look, row_dim

__all__ = [
    "Graph", "LatentSite", "NegativeELBO", "Program", "Structure", "check_guide", "gradients", "guide_terms",
    "is_latent", "look", "model_terms", "record", "row_dim", "sites_of", "split_terms",
]  # fmt: skip
