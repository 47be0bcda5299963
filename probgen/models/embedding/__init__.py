"""Word vectors, and the exact law of a word's neighbours that they stand for."""

from probgen.models.embedding.analogies import Accuracy, Section
from probgen.models.embedding.family import Embedding

__all__ = ["Accuracy", "Embedding", "Section"]
