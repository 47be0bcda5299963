"""Programs that pack files, as baselines for text: a code length is a lower bound on log p."""

from probgen.models.compressor.family import Compressor

__all__ = ["Compressor"]
