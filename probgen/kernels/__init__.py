"""Compiled inner loops: arrays in, arrays out. Each is an extension module, or None where it was not built: ``native``
(chains and normals), ``cliques`` (sums over discrete factors), ``counting`` (contingency tables), ``skipgram`` (words).

The extensions are optional: an installation without a C++ compiler works on the torch path, and says so once.
"""

import logging
from importlib import import_module
from types import ModuleType

__all__ = ["cliques", "counting", "native", "skipgram"]


def _built(name: str) -> ModuleType | None:
    try:
        return import_module(f"probgen.kernels._{name}")
    except ImportError:
        return None


native, cliques, counting, skipgram = (_built(name) for name in ("native", "cliques", "counting", "skipgram"))
if None in (native, cliques, counting, skipgram):
    logging.getLogger("probgen").warning(
        "probgen runs without its compiled kernels: hidden Markov models are about ten times slower, Bayesian networks "
        "hundreds of times. To build them, install probgen again where there is a C++ compiler"
    )
