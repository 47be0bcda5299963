"""Markov fields: factor graphs over discrete variables, exact where the sums can be done, else bounded from a side that
is known."""

from probgen.models.markovfield.annealing import RAISE, PartitionAIS, PartitionReverseAIS
from probgen.models.markovfield.belief import LoopyBP
from probgen.models.markovfield.field import MarkovField
from probgen.models.markovfield.learning import PseudoLikelihood
from probgen.models.markovfield.partition import Partition
from probgen.models.markovfield.reweighted import TreeReweighted

__all__ = [
    "RAISE", "LoopyBP", "MarkovField", "Partition", "PartitionAIS", "PartitionReverseAIS", "PseudoLikelihood",
    "TreeReweighted",
]  # fmt: skip
