"""How probable is this data under any generative model, and what kind of number is that?"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_NAMES = {
    "ELBO": "probgen.estimate",
    "Enumerate": "probgen.estimate",
    "GAN": "probgen.models.gan",
    "GaussianCopula": "probgen.models.baseline",
    "IWAE": "probgen.estimate",
    "Independent": "probgen.models.baseline",
    "KernelDensity": "probgen.models.kernel",
    "Kind": "probgen.logprob",
    "Ladder": "probgen.estimate",
    "LogProb": "probgen.logprob",
    "Mixture": "probgen.models.mixture",
    "VAE": "probgen.models.vae",
    "compare": "probgen.evaluate.compare",
    "load": "probgen.store",
    "pyro_pair": "probgen.model",
    "save": "probgen.store",
}
_ROOMS = ("datasets", "emissions", "errors", "events", "nn", "plots")

__all__ = [*_NAMES, *_ROOMS]

if TYPE_CHECKING:
    from probgen import datasets, emissions, errors, events, nn, plots
    from probgen.estimate import ELBO, IWAE, Enumerate, Ladder
    from probgen.evaluate.compare import compare
    from probgen.logprob import Kind, LogProb
    from probgen.model import pyro_pair
    from probgen.models.baseline import GaussianCopula, Independent
    from probgen.models.gan import GAN
    from probgen.models.kernel import KernelDensity
    from probgen.models.mixture import Mixture
    from probgen.models.vae import VAE
    from probgen.store import load, save


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value = getattr(import_module(_NAMES[name]), name)
    elif name in _ROOMS:
        value = import_module(f"probgen.{name}")
    elif name == "__version__":
        from importlib.metadata import version

        value = version("probgen")
    else:
        raise AttributeError(f"probgen has no {name!r}; it has: {', '.join(__all__)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
