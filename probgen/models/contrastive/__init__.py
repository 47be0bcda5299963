"""Pictures and captions that belong together have like codes: similarity, retrieval, zero-shot classes. A score."""

from probgen.models.contrastive.family import Contrastive
from probgen.models.contrastive.retrieval import Retrieval

__all__ = ["Contrastive", "Retrieval"]
