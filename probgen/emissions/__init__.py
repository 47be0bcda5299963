"""Conditional distributions of one observation given a discrete state, shared by mixtures and sequence models.

An emission holds the parameters of all K states; ``with_states(K)`` makes one of another size. Data come as cells,
float64 (n, width), NaN where missing, followed by the covariates of an emission that has some.
"""

from probgen.emissions.autoregressive import Autoregressive
from probgen.emissions.bernoulli import Bernoulli
from probgen.emissions.categorical import Categorical
from probgen.emissions.discretised import Discretised, DiscretisedNormal
from probgen.emissions.emission import Emission, start_responsibilities
from probgen.emissions.factor import FactorNormal
from probgen.emissions.gamma import Gamma
from probgen.emissions.histogram import Histogram, HistogramDensity
from probgen.emissions.negativebinomial import NegativeBinomial
from probgen.emissions.normal import LogNormal, Normal
from probgen.emissions.normalmixture import NormalMixture
from probgen.emissions.poisson import Poisson
from probgen.emissions.product import Product, for_event
from probgen.emissions.program import Program
from probgen.emissions.regression import LinearRegression
from probgen.emissions.studentt import StudentT

__all__ = [
    "Autoregressive", "Bernoulli", "Categorical", "Discretised", "DiscretisedNormal", "Emission", "FactorNormal",
    "Gamma", "Histogram", "HistogramDensity", "LinearRegression", "LogNormal", "NegativeBinomial", "Normal",
    "NormalMixture", "Poisson", "Product", "Program", "StudentT",
    "for_event", "start_responsibilities",
]  # fmt: skip
