"""Conditional distributions of one observation given a discrete state, shared by mixtures and sequence models.

An emission holds the parameters of all K states; ``with_states(K)`` makes one of another size. Data come as cells,
float64 (n, width), NaN where missing.
"""

from probgen.emissions.categorical import Categorical
from probgen.emissions.discretised import Discretised, DiscretisedNormal
from probgen.emissions.emission import Emission, start_responsibilities
from probgen.emissions.histogram import Histogram, HistogramDensity
from probgen.emissions.normal import LogNormal, Normal
from probgen.emissions.poisson import Poisson
from probgen.emissions.product import Product, for_event

__all__ = [
    "Categorical", "Discretised", "DiscretisedNormal", "Emission", "Histogram", "HistogramDensity",
    "LogNormal", "Normal", "Poisson", "Product",
    "for_event", "start_responsibilities",
]  # fmt: skip
