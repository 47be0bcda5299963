"""Models on disk: safetensors and a JSON card under one checksum. No code is ever loaded."""

import hashlib
import importlib
import json
import math
import os
import platform
import re
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probgen import frames
from probgen.errors import StoreError, nearest
from probgen.events import arguments
from probgen.model import FitReport, GenerativeModel

__all__ = ["FAMILIES", "FORMAT", "card", "check_folder", "family", "load", "read", "save", "write"]

FORMAT = 1
FAMILIES = {
    "BayesianNetwork": "probgen.models.bayesnet",
    "Compressor": "probgen.models.compressor",
    "Contrastive": "probgen.models.contrastive",
    "Diffusion": "probgen.models.diffusion",
    "Flow": "probgen.models.flow",
    "GAN": "probgen.models.gan",
    "GaussianCopula": "probgen.models.baseline",
    "HMM": "probgen.models.hmm",
    "Independent": "probgen.models.baseline",
    "KernelDensity": "probgen.models.kernel",
    "LanguageModel": "probgen.models.language",
    "LinearChainCRF": "probgen.models.crf",
    "MarkovField": "probgen.models.markovfield",
    "Mixture": "probgen.models.mixture",
    "MultimodalVAE": "probgen.models.multimodal",
    "NGram": "probgen.models.ngram",
    "Regression": "probgen.models.regression",
    "Standardize": "probgen.models.standardize",
    "StateSpace": "probgen.models.statespace",
    "TextDiffusion": "probgen.models.textdiffusion",
    "VAE": "probgen.models.vae",
}
_EMISSIONS = (
    "Autoregressive Bernoulli Categorical DiscretisedNormal FactorNormal Gamma Histogram LinearRegression LogNormal "
    "NegativeBinomial Normal NormalMixture Poisson Product StudentT"
)
_PARTS = {
    **dict.fromkeys(
        ("Array", "BPE", "Category", "Count", "Panel", "Real", "Record", "Series", "Table", "Text", "Words"),
        "probgen.events",
    ),
    **dict.fromkeys(_EMISSIONS.split(), "probgen.emissions"),
    **dict.fromkeys(
        ("LinearGaussian", "NoisyOr", "Point", "PoissonRegression", "Softmax", "Tabular"), "probgen.conditionals"
    ),
    **dict.fromkeys(("Durations", "Factorial", "InputDriven", "Markov"), "probgen.transitions"),
}
_EXTRAS = ("n_rows", "log_likelihood")
_DRAWS = ("numbers", "stats", "facts")  # of posterior.Kept
_CARD, _CARD_LIMIT, _BLANK = "card.json", 1 << 24, "0" * 64
_OURS = re.compile(r"[0-9a-f]{16}\.safetensors|\..*\.[0-9a-f]{8}\.tmp")


def family(name: str) -> type[GenerativeModel]:
    """A family by its exact name, letter case aside; only names in FAMILIES are ever imported."""
    known = {key.lower(): key for key in FAMILIES}
    if name.lower() not in known:
        raise StoreError(f"There is no family {name!r}", "", nearest(name, FAMILIES))
    exact = known[name.lower()]
    return getattr(importlib.import_module(FAMILIES[exact]), exact)


def save(model: GenerativeModel, folder: str | PathLike) -> Path:
    """Writes a fitted model to a folder: ``card.json`` and one safetensors file.

    An older model in that folder stays whole until the new one is; then it is replaced.

    Raises:
        NotFittedError: before ``fit``.
        StoreError: when the folder can't be written, or holds something else; a model that is the user's own program.
    """
    model._check_fitted()
    if type(model).__name__ not in FAMILIES:
        raise StoreError(
            f"A {type(model).__name__} is somebody's program, which can't be saved by name",
            "a family of probgen",
            "Keep the program's own parameters, and wrap it again: see its state_dict()",
        )
    about = card(model)
    extras = {name: _encode(getattr(model, name)) for name in _EXTRAS if hasattr(model, name)}
    return write(folder, dict(model.state_dict()), {**about, "extras": extras})


def load(folder: str | PathLike) -> GenerativeModel:
    """The model in a folder; it gives the same scores, bit for bit.

    Raises:
        StoreError: a missing, damaged or truncated file, an unknown family, a newer format.
    """
    about, tensors = read(folder)
    name = about.get("family")
    if about.get("what") != "model" or not isinstance(name, str) or name not in FAMILIES:
        raise StoreError(
            f"{folder} holds {name or about.get('what')!r}", "a model of a known family", nearest("", FAMILIES)
        )
    try:
        model = family(name)(**{k: _decode(v) for k, v in about["arguments"].items()})
        model.report = _report(_decode(about["fit"]))
        model.form = about["form"]
        for extra, value in about["extras"].items():
            if extra not in _EXTRAS or not hasattr(model, extra):
                raise KeyError(extra)
            setattr(model, extra, _number(_decode(value)))
        _put(model, _completed(model, tensors, about, folder))
    except StoreError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as problem:
        raise StoreError(
            f"The card in {folder} can't be followed: {problem!r}", "a card written by save()"
        ) from problem
    return model.eval()


def _number(value: Any) -> int | float:
    return value if type(value) is int else float(value)


def _report(fit: dict[str, Any]) -> FitReport:
    kept: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in fit.items()}
    return FitReport(**kept)


def card(model: GenerativeModel) -> dict[str, Any]:
    """Everything about a model but its numbers: family, constructor call, event, fit, versions."""
    report = vars(model.report) if model.report else {}
    return {
        "format": FORMAT,
        "what": "model",
        "family": type(model).__name__,
        "arguments": {name: _encode(value) for name, value in arguments(model).items()},
        "repr": repr(model),
        "form": model.form,
        "fit": _encode(report),
        "parameters": sum(p.numel() for p in model.parameters()),
        "saved": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"probgen": _version("probgen"), "torch": torch.__version__, "python": platform.python_version()},
    }


def _version(package: str) -> str:
    with suppress(PackageNotFoundError):
        return version(package)
    return "unknown"


def _completed(
    model: GenerativeModel, tensors: dict[str, Tensor], about: dict[str, Any], folder: str | PathLike
) -> dict[str, Tensor]:
    """The tensors of a folder, with empty draws where an older probgen kept none: a point fit.

    Raises:
        StoreError: others are missing or unknown.
    """
    expected = model.state_dict()
    parts = {name.rpartition(".")[0] for name in expected if name.endswith("kept.facts")}
    draws = {f"{part}.{name}" for part in parts for name in _DRAWS if not any(f"{part}.{n}" in tensors for n in _DRAWS)}
    whole = {name: expected[name] for name in draws} | tensors
    if other := sorted(set(expected) ^ set(whole)):
        version = about.get("versions", {}).get("probgen", "unknown")
        came = f"{folder} was saved by probgen {version}: its tensors {other[:4]} are missing or unknown here"
        raise StoreError(came, "the tensors of this version", "Load it with that version, or fit the model again")
    return whole


def _put(model: GenerativeModel, tensors: dict[str, Tensor]) -> None:
    """Parameters and buffers by name, each of its own dtype and shape; growing buffers may have any length."""
    expected = model.state_dict()
    for name, value in tensors.items():
        skip = int(name in model.growing)
        if value.dtype != expected[name].dtype or value.shape[skip:] != expected[name].shape[skip:]:
            raise ValueError(f"tensor {name} has dtype {value.dtype} and shape {tuple(value.shape)}")
    for name, value in tensors.items():
        path, _, last = name.rpartition(".")
        owner = model.get_submodule(path)
        if last in owner._parameters:
            owner._parameters[last].data = value  # type: ignore[union-attr]
        else:
            owner._buffers[last] = value


def _encode(value: Any) -> Any:
    """Arguments as JSON: plain values, and parts (events, emissions) by whitelisted name."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    if isinstance(value, dict):
        return {"dict": [[_encode(key), _encode(item)] for key, item in value.items()]}
    name = type(value).__name__
    if name not in _PARTS:
        raise StoreError(f"{value!r} can't be saved", f"plain values, events and emissions: {', '.join(_PARTS)}")
    return {"part": name, "arguments": {k: _encode(v) for k, v in arguments(value).items() if k != "states"}}


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "float" in value:
        return {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[value["float"]]
    if "dict" in value:
        return {_decode(key): _decode(item) for key, item in value["dict"]}
    part = getattr(importlib.import_module(_PARTS[value["part"]]), value["part"])
    return part(**{name: _decode(item) for name, item in value["arguments"].items()})


def _sealed(about: dict[str, Any], payload: bytes) -> bytes:
    """The card's bytes with a checksum over themselves (zeros in its place) and the payload."""
    blank = json.dumps({**about, "sha256": _BLANK}, indent=1, allow_nan=False).encode()
    return blank.replace(_BLANK.encode(), hashlib.sha256(blank + payload).hexdigest().encode())


def _is_sealed(raw: bytes, seal: Any, payload: bytes) -> bool:
    if not isinstance(seal, str) or len(seal) != len(_BLANK) or raw.count(seal.encode()) != 1:
        return False
    return hashlib.sha256(raw.replace(seal.encode(), _BLANK.encode()) + payload).hexdigest() == seal


def check_folder(folder: str | PathLike, what: str) -> Path:
    """Makes a folder and sees that a card of that kind may be written there.

    Raises:
        StoreError: not writable, or it holds something else; nothing is changed.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = [path.name for path in folder.iterdir() if not _OURS.fullmatch(path.name)]
        raw = (folder / _CARD).read_bytes() if _CARD in others else b""
    except OSError as problem:
        raise StoreError(
            f"{folder} can't be made or read: {problem.strerror}", "a folder one may write to", "Another place"
        ) from problem
    if not os.access(folder, os.W_OK):
        raise StoreError(f"{folder} is not writable", "a folder one may write to", "Another place")
    if raw:
        kind = str(_card_of(raw).get("what"))
        if kind != what:
            raise StoreError(
                f"{folder} holds a card of something else ({kind})", f"a new folder or a {what}", "Another place"
            )
    elif others:
        raise StoreError(f"{folder} holds other files: {others[:3]}", f"a new folder or a {what}", "Another place")
    return folder


def _card_of(raw: bytes) -> dict[str, Any]:
    try:
        about = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return about if isinstance(about, dict) and isinstance(about.get("format"), int) else {}


def write(folder: str | PathLike, tensors: dict[str, Tensor], about: dict[str, Any]) -> Path:
    """Tensors and their card into a folder. The card is renamed last: the folder is wholly old or wholly new.

    Raises:
        StoreError: the folder can't be written or holds something else; what was there stays whole.
    """
    from safetensors.numpy import save as to_bytes

    folder = check_folder(folder, str(about.get("what")))
    old = _card_of((folder / _CARD).read_bytes()).get("tensors") if (folder / _CARD).exists() else None
    payload = to_bytes({name: np.array(t.detach().cpu().numpy(), order="C") for name, t in tensors.items()})
    name = f"{hashlib.sha256(payload).hexdigest()[:16]}.safetensors"
    frames.write_whole(folder / name, [payload])
    frames.write_whole(folder / _CARD, [_sealed({**about, "tensors": name}, payload)])
    if isinstance(old, str) and old != name and _OURS.fullmatch(old):
        with suppress(OSError):
            (folder / old).unlink()
    return folder


def read(folder: str | PathLike) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The card and tensors of a folder, after their checksum.

    Raises:
        StoreError: missing, damaged or truncated files, a newer format.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    folder = Path(folder)
    damaged = "Restore it from a copy, or fit the model again"
    try:
        if (folder / _CARD).stat().st_size > _CARD_LIMIT:
            raise StoreError(f"{folder / _CARD} is larger than 16 MiB", "a card written by save()", damaged)
        raw = (folder / _CARD).read_bytes()
        about = _card_of(raw)
        if not about:
            raise StoreError(f"{folder / _CARD} is no probgen card", "a card written by save()", damaged)
        if about["format"] > FORMAT:
            raise StoreError(f"{folder} has format {about['format']}", f"format {FORMAT} or older", "Upgrade probgen")
        payload = (folder / Path(str(about.get("tensors"))).name).read_bytes()
        if not _is_sealed(raw, about.get("sha256"), payload):
            raise StoreError(f"The checksum of {folder} does not match: a file is damaged", "the bytes saved", damaged)
        return about, {name: torch.from_numpy(a.copy()) for name, a in from_bytes(payload).items()}
    except FileNotFoundError as problem:
        missing = f"There is no model in {folder}: {problem.filename} is missing"
        raise StoreError(missing, "a folder written by save()", "Check the path") from problem
    except (OSError, SafetensorError, LookupError, TypeError, ValueError) as problem:
        raise StoreError(f"{folder} can't be read: {problem!r}", "a folder written by save()", damaged) from problem
