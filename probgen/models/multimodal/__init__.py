"""Multimodal variational autoencoders: images, texts, vectors and tables observed together."""

from probgen.models.multimodal.conditionals import Choice, SelfNormalised
from probgen.models.multimodal.family import MultimodalVAE

__all__ = ["Choice", "MultimodalVAE", "SelfNormalised"]
