"""The door to matplotlib: samples beside the data, sequences and hidden states, graphs, latent codes, as pictures."""

from probgen.plots.codes import codes
from probgen.plots.networks import network
from probgen.plots.rows import samples
from probgen.plots.time import graph, heat, sequence, series, states

__all__ = ["codes", "graph", "heat", "network", "samples", "sequence", "series", "states"]
