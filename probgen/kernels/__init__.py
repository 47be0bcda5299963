"""Compiled inner loops: arrays in, arrays out. Each is an extension module, or None where it was not built: ``native``
(chains and normals), ``cliques`` (sums over discrete factors), ``counting`` (contingency tables), ``decoder`` (steps of
transformers), ``skipgram`` (words).

The extensions are optional: an installation without a C++ compiler works on the torch path, and says so once.
"""

import logging
from importlib import import_module
from types import ModuleType

__all__ = ["cliques", "counting", "decoder", "native", "skipgram"]


def _built(name: str) -> ModuleType | None:
    try:
        return import_module(f"probgen.kernels._{name}")
    except ImportError:
        return None


cliques, counting, decoder, native, skipgram = map(_built, __all__)
if None in (cliques, counting, decoder, native, skipgram):
    logging.getLogger("probgen").warning(
        "probgen runs without its compiled kernels: hidden Markov models are about ten times slower, Bayesian networks "
        "hundreds of times, drawn texts a few times. To build them, install probgen again where there is a C++ compiler"
    )
