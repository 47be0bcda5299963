"""Somebody else's model behind the same verbs, and ours in their form. Found by the module of its type, never imported
before it is there."""

import importlib
import inspect
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from torch import nn
from torch.distributions import Distribution

from probgen.errors import ParameterError, StoreError, StructureError, nearest
from probgen.foreign.pair import is_pair
from probgen.model import GenerativeModel

__all__ = ["export", "from_pretrained", "wrap"]

_FROM = {
    "diffusers": "probgen.foreign.diffusers",
    "hmmlearn": "probgen.foreign.hmmlearn",
    "pgmpy": "probgen.foreign.pgmpy",
    "pyro": "probgen.foreign.pyro",
    "sklearn": "probgen.foreign.sklearn",
    "torch": "probgen.foreign.distributions",
    "transformers": "probgen.foreign.transformers",
    "zuko": "probgen.foreign.flows",
}
_PAIR = "probgen.foreign.pair"
_OPTIONED = ("diffusers", "pyro", "sklearn", "torch", "transformers", "zuko")  # whose doors take options
_TO = ("hmmlearn", "pgmpy", "pyro")
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
        foreign: One of these.
            hmmlearn: CategoricalHMM, GaussianHMM, GMMHMM, PoissonHMM: a fitted HMM. Pyro's DiscreteHMM: HiddenMarkov,
            in our convention of the first step.
            pgmpy: DiscreteBayesianNetwork, LinearGaussianBayesianNetwork, DiscreteMarkovNetwork, FactorGraph; or the
            path of a network file (.bif, .bif.gz, .net, .uai, .xdsl, .xmlbif): BayesianNetwork or MarkovField.
            scikit-learn: GaussianMixture, BayesianGaussianMixture, KernelDensity, covariance estimators, PCA,
            FactorAnalysis, a Pipeline of affine steps before one: a Mixture or ForeignDensity, in the data's units.
            torch and Pyro: a distribution of one row. zuko: a flow. Each a ForeignDensity.
            A plain ``(sample, log_prob)`` pair of functions: ForeignDensity. The second is named log_prob (or logpdf,
            logpmf, score_samples, ...), or ``kind=`` is given, or the first takes ``n`` (or size, n_samples) and the
            second does not; any other pair is a Pyro program.
            A Pyro program: ``(model, guide)``, the guide a function, an autoguide, the class of one or None
            (AutoNormal); or a model alone: PyroProgram, to be fitted (``fitted=True`` where it was trained outside).
            diffusers: an unconditional pipeline, or the folder that one was saved to, read offline: DiffusersModel.
            transformers: ``(model, tokenizer)``, or their folder: CausalLM; or MaskedLM, which gives scores.
        **options: ``event=``, what one row is: needed for programs and pairs, read from the rest. Of a pair ``kind=``
            ("exact" by the user's word, "lower", ...), ``by=``, ``target=``; of zuko ``context=``; of a program those
            of ``PyroProgram``.

    Raises:
        StructureError: of a kind that has no counterpart here.
        NotFittedError: without parameters.
        ParameterError: options that this kind has not.
        StoreError: a file that can't be read.
    """
    if isinstance(foreign, str | PathLike):
        return _of_path(Path(fspath(foreign)), options)
    library = _library(foreign, options)
    if options and library in _FROM and library not in _OPTIONED:
        raise ParameterError(
            f"{', '.join(options)} for a {type(foreign).__name__}",
            "options of programs and pipelines",
            "Leave them out",
        )
    if library not in (*_FROM, "pair"):
        raise StructureError(
            f"A {type(foreign).__module__}.{type(foreign).__qualname__}",
            f"a fitted model of {' or '.join(sorted(_FROM))}",
            "Or a Pyro program: wrap((model, guide), event=...); or functions: wrap((sample, log_prob), event=...)",
        )
    door = importlib.import_module(_PAIR if library == "pair" else _FROM[library])
    known = [name for name in inspect.signature(door.wrap).parameters if name not in ("foreign", "options")]
    if library != "pyro" and (unknown := [name for name in options if name not in known]):
        came = f"{', '.join(unknown)} for a {type(foreign).__name__}"
        raise ParameterError(came, f"options of it: {', '.join(known)}", nearest(unknown[0], known))
    return door.wrap(foreign, **options)


def _library(foreign: Any, options: dict[str, Any]) -> str:
    """Whose door a thing belongs to, by the module of its type."""
    if _is_language(foreign):
        return "transformers"
    if is_pair(foreign, options):
        return "pair"
    library = type(foreign).__module__.partition(".")[0]
    if isinstance(foreign, Distribution):
        return "pyro" if type(foreign).__name__ == "DiscreteHMM" else "torch"
    if any(kind.__module__.partition(".")[0] == "zuko" for kind in type(foreign).__mro__):
        return "zuko"
    if isinstance(foreign, tuple) or (library not in _FROM and callable(foreign)) or library == "torch":
        return "pyro"
    return library


def _is_language(foreign: Any) -> bool:
    """Whether something is a network with a config, and a tokenizer."""
    if not isinstance(foreign, tuple) or len(foreign) != 2:
        return False
    return isinstance(foreign[0], nn.Module) and hasattr(foreign[0], "config") and hasattr(foreign[1], "decode")


def from_pretrained(folder: str | PathLike, *, allow_pickle: bool = False, **options: Any) -> Any:
    """A language model of transformers and its tokenizer from a local folder: CausalLM or MaskedLM.

    It is read offline and runs no code of its own; a name that is no folder is refused, never looked up.

    Arguments:
        folder: Written by ``save_pretrained``, model and tokenizer.
        allow_pickle: Whether weights may come from .bin files, where there are no safetensors.
        **options: ``window=``, ``stride=``, ``bos=``, ``ends=``, ``normalised=`` of CausalLM.

    Raises:
        StoreError: no folder, or one that can't be read. MissingExtra: transformers is not installed.
    """
    return importlib.import_module(_FROM["transformers"]).read(folder, allow_pickle, **options)


def _of_path(path: Path, options: dict[str, Any]) -> Any:
    """A folder of a diffusers pipeline or a language model, or a network file."""
    if (path / "config.json").exists() and not (path / "model_index.json").exists():
        return from_pretrained(path, **options)
    if (path / "model_index.json").exists():
        return importlib.import_module(_FROM["diffusers"]).read(path, **options)
    if options:
        raise ParameterError(f"{', '.join(options)} for a file", "options of programs and pipelines", "Leave them out")
    return _read(path)


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
    if to not in _TO:
        raise ParameterError(f"export to {to!r}", "", nearest(to, _TO))
    model._check_fitted()
    return importlib.import_module(_FROM[to]).export(model, **options)
