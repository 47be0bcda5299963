"""Models on disk: safetensors and a JSON card under one checksum. No code is ever loaded."""

import hashlib
import importlib
import json
import math
import platform
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from probgen import frames
from probgen.errors import StoreError, nearest
from probgen.events import arguments
from probgen.model import FitReport, GenerativeModel

__all__ = ["FAMILIES", "FORMAT", "card", "family", "load", "read", "save", "write"]

FORMAT = 1
FAMILIES = {
    "GAN": "probgen.models.gan",
    "GaussianCopula": "probgen.models.baseline",
    "Independent": "probgen.models.baseline",
    "KernelDensity": "probgen.models.kernel",
    "Mixture": "probgen.models.mixture",
    "VAE": "probgen.models.vae",
}
_PARTS = {
    **dict.fromkeys(("Array", "Category", "Count", "Real", "Record", "Series", "Table", "Text"), "probgen.events"),
    **dict.fromkeys(
        ("Categorical", "DiscretisedNormal", "Histogram", "LogNormal", "Normal", "Poisson", "Product"),
        "probgen.emissions",
    ),
}
_CARD, _CARD_LIMIT = "card.json", 1 << 24


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
        StoreError: when the folder can't be written, or holds something else.
    """
    model._check_fitted()
    about = card(model)
    extras = {k: v for k, v in vars(model).items() if k in ("n_rows", "log_likelihood")}
    return write(folder, dict(model.state_dict()), {**about, "extras": _encode(extras)})


def load(folder: str | PathLike) -> GenerativeModel:
    """The model in a folder; it gives the same scores, bit for bit.

    Raises:
        StoreError: a missing, damaged or truncated file, an unknown family, a newer format.
    """
    about, tensors = read(folder)
    if about.get("what") != "model" or about.get("family") not in FAMILIES:
        raise StoreError(f"{folder} holds {about.get('family', about.get('what'))!r}", "a model", nearest("", FAMILIES))
    try:
        model = family(about["family"])(**{k: _decode(v) for k, v in about["arguments"].items()})
        model.report = FitReport(
            **{k: tuple(v) if isinstance(v, list) else v for k, v in _decode(about["fit"]).items()}
        )
        model.form = about["form"]
        for name, value in _decode(about["extras"]).items():
            setattr(model, name, value)
        _put(model, tensors)
    except (KeyError, TypeError, AttributeError, ValueError) as problem:
        raise StoreError(
            f"The card in {folder} can't be followed: {problem!r}", "a card written by save()"
        ) from problem
    return model.eval()


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


def _put(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Parameters and buffers by name; a buffer may have any shape (its length may be the data's)."""
    expected = model.state_dict()
    if set(expected) != set(tensors):
        raise KeyError(f"tensors {sorted(set(expected) ^ set(tensors))[:4]} are missing or unknown")
    for name, value in tensors.items():
        path, _, last = name.rpartition(".")
        owner = model.get_submodule(path)
        if value.dtype != expected[name].dtype or (last in owner._parameters and value.shape != expected[name].shape):
            raise ValueError(f"tensor {name} has dtype {value.dtype} and shape {tuple(value.shape)}")
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


def _checksum(about: dict[str, Any], payload: bytes) -> str:
    canonical = json.dumps({k: v for k, v in about.items() if k != "sha256"}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(canonical.encode() + payload).hexdigest()


def write(folder: str | PathLike, tensors: dict[str, Tensor], about: dict[str, Any]) -> Path:
    """Tensors and their card into a folder. The card is renamed last: the folder is wholly old or wholly new."""
    from safetensors.numpy import save as to_bytes

    folder = Path(folder)
    payload = to_bytes({name: np.array(t.detach().cpu().numpy(), order="C") for name, t in tensors.items()})
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise StoreError(f"{folder} can't be made: {problem.strerror}", "a folder that can be written") from problem
    if any(folder.iterdir()) and not (folder / _CARD).exists():
        raise StoreError(
            f"{folder} holds other files", "a new folder, or one with a model to replace", "Nothing was changed"
        )
    name = f"{hashlib.sha256(payload).hexdigest()[:16]}.safetensors"
    about = {**about, "tensors": name}
    about["sha256"] = _checksum(about, payload)
    frames.write_whole(folder / name, [payload])
    frames.write_whole(folder / _CARD, [json.dumps(about, indent=1, allow_nan=False).encode()])
    for stale in folder.glob("*.safetensors"):
        if stale.name != name:
            stale.unlink(missing_ok=True)
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
        about = json.loads((folder / _CARD).read_bytes())
        if not isinstance(about, dict) or not isinstance(about.get("format"), int):
            raise StoreError(f"{folder / _CARD} is no probgen card", "a card written by save()", damaged)
        if about["format"] > FORMAT:
            raise StoreError(f"{folder} has format {about['format']}", f"format {FORMAT} or older", "Upgrade probgen")
        payload = (folder / Path(str(about.get("tensors"))).name).read_bytes()
        if _checksum(about, payload) != about.get("sha256"):
            raise StoreError(f"The checksum of {folder} does not match: a file is damaged", "the bytes saved", damaged)
        return about, {name: torch.from_numpy(a.copy()) for name, a in from_bytes(payload).items()}
    except FileNotFoundError as problem:
        raise StoreError(
            f"There is no model in {folder}: {problem.filename} is missing", "a folder written by save()"
        ) from problem
    except (OSError, SafetensorError, ValueError, RecursionError) as problem:
        if isinstance(problem, StoreError):
            raise
        raise StoreError(f"{folder} can't be read: {problem}", "a folder written by save()", damaged) from problem
