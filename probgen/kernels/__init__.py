"""Compiled inner loops: arrays in, arrays out. ``native`` is the extension module, or None where it was not built.

The extension is optional: an installation without a C++ compiler works on the torch path, and says so once.
"""

import logging
from importlib import import_module
from types import ModuleType

__all__ = ["native"]

native: ModuleType | None = None
try:
    native = import_module("probgen.kernels._native")
except ImportError:
    logging.getLogger("probgen").warning(
        "probgen runs without its compiled kernels: hidden Markov models are about ten times slower. "
        "To build them, install probgen again where there is a C++ compiler"
    )
