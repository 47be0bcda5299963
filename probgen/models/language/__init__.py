"""Autoregressive language models: transformers over text, or over any sequence of symbols."""

from probgen.models.language.choosing import Choice
from probgen.models.language.family import LanguageModel, TokenPath
from probgen.models.language.sampler import Sampler
from probgen.models.language.search import Beams, Infill

__all__ = ["Beams", "Choice", "Infill", "LanguageModel", "Sampler", "TokenPath"]
