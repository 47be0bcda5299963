"""Hidden Markov models: the family, how it learns, what it can be asked, and its Pyro programs."""

from probgen.models.hmm.hmm import HMM
from probgen.models.hmm.program import HiddenMarkov

__all__ = ["HMM", "HiddenMarkov"]
