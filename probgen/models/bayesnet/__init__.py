"""Bayesian networks: the family, how rows are scored, what it can be asked."""

from probgen.models.bayesnet.likelihood import PosteriorWeighting
from probgen.models.bayesnet.network import BayesianNetwork
from probgen.models.bayesnet.queries import Marginals
from probgen.models.bayesnet.weighting import LikelihoodWeighting

__all__ = ["BayesianNetwork", "LikelihoodWeighting", "Marginals", "PosteriorWeighting"]
