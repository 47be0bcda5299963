"""Somebody else's model behind the same verbs, and ours in their form. Found by the module of its type, never imported
before it is there."""

import importlib
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from probgen.errors import ParameterError, StoreError, StructureError, nearest
from probgen.model import GenerativeModel

__all__ = ["export", "wrap"]

_FROM = {
    "diffusers": "probgen.foreign.diffusers",
    "hmmlearn": "probgen.foreign.hmmlearn",
    "pgmpy": "probgen.foreign.pgmpy",
    "pyro": "probgen.foreign.pyro",
}
_FILES = {
    ".bif": "probgen.models.bayesnet.bif",
    ".bifxml": "probgen.foreign.pgmpy",
    ".net": "probgen.foreign.pgmpy",
    ".uai": "probgen.foreign.uai",
    ".xdsl": "probgen.foreign.pgmpy",
    ".xml": "probgen.foreign.pgmpy",
    ".xmlbif": "probgen.foreign.pgmpy",
}


def __getattr__(name: str) -> Any:
    """The doors themselves, for what only they have: ``foreign.pgmpy.pc(data)``."""
    if name in _FROM:
        return importlib.import_module(_FROM[name])
    raise AttributeError(f"probgen.foreign has no {name!r}; it has: {', '.join([*__all__, *_FROM])}")


def wrap(foreign: Any, **options: Any) -> Any:
    """A foreign fitted model as one of ours, with the same likelihood.

    Arguments:
        foreign: A fitted hmmlearn model (CategoricalHMM, GaussianHMM, GMMHMM, PoissonHMM); Pyro's DiscreteHMM; a pgmpy
            DiscreteBayesianNetwork, LinearGaussianBayesianNetwork, DiscreteMarkovNetwork or FactorGraph; the path of a
            network file (.bif, .bif.gz, .net, .uai, .xdsl, .xmlbif). Or a Pyro program: ``(model, guide)``, the guide a
            function, an autoguide, the class of one or None (AutoNormal); or a model alone. Or an unconditional
            diffusers pipeline, or the folder that one was saved to: read offline, safetensors only.
        **options: Of a Pyro program ``event=`` (needed), and those of ``PyroProgram``; of diffusers ``event=``.

    Returns:
        A fitted HMM; for a DiscreteHMM the distribution HiddenMarkov, in our convention of the first step; a fitted
        BayesianNetwork; a MarkovField of a field, also from a .uai file that says MARKOV; a PyroProgram, to be fitted
        (``fitted=True`` where it was trained outside); a DiffusersModel.

    Raises:
        StructureError: of a kind that has no counterpart here.
        NotFittedError: without parameters.
        StoreError: a file that can't be read.
    """
    library = type(foreign).__module__.partition(".")[0]
    if isinstance(foreign, tuple) or (library not in _FROM and callable(foreign)):
        library = "pyro"
    folder = isinstance(foreign, str | PathLike) and (Path(fspath(foreign)) / "model_index.json").exists()
    if options and not folder and library not in ("pyro", "diffusers"):
        name = type(foreign).__name__
        raise ParameterError(
            f"{', '.join(options)} for a {name}", "options of programs and pipelines", "Leave them out"
        )
    if folder:
        return importlib.import_module(_FROM["diffusers"]).read(Path(fspath(foreign)), **options)
    if isinstance(foreign, str | PathLike):
        return _read(Path(fspath(foreign)))
    if library not in _FROM:
        raise StructureError(
            f"A {type(foreign).__module__}.{type(foreign).__qualname__}",
            f"a fitted model of {' or '.join(sorted(_FROM))}",
            "Or a Pyro program: wrap((model, guide), event=...)",
        )
    return importlib.import_module(_FROM[library]).wrap(foreign, **options)


def _read(path: Path) -> Any:
    """The network in a file, by its suffix."""
    suffix = path.with_suffix("").suffix.lower() if path.suffix == ".gz" else path.suffix.lower()
    if suffix not in _FILES or (path.suffix == ".gz" and suffix != ".bif"):
        raise StructureError(
            f"{str(path)!r} is no folder of a diffusers pipeline, and has no suffix of a network file",
            f"one of {', '.join(_FILES)}, .bif.gz",
            "Names of a hub are not looked up: download the folder first",
        )
    if not path.exists():
        raise StoreError(f"There is no file {path}", "a network file that exists", "Check the path")
    module = importlib.import_module(_FILES[suffix])
    return module.load(path) if suffix == ".bif" else module.read(path)


def export(model: GenerativeModel, to: str, **options: Any) -> Any:
    """A fitted model of ours in a foreign library's form, with the same likelihood.

    Arguments:
        to: "hmmlearn"; "pgmpy" (networks of tables, or of linear Gaussians; Markov fields); "pyro" (DiscreteHMM; needs
            ``duration=``).

    Raises:
        StructureError: the model has a part that the library lacks; it is named.
    """
    if to not in _FROM:
        raise ParameterError(f"export to {to!r}", "", nearest(to, _FROM))
    model._check_fitted()
    return importlib.import_module(_FROM[to]).export(model, **options)
