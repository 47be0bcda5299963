"""Measured data: pictures, flowers, earthquakes, tunes."""

from importlib import resources
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from probgen import frames
from probgen.datasets.dataset import Dataset
from probgen.datasets.files import read_idx
from probgen.errors import DataError, MissingExtra
from probgen.events import Array, Category, Real, Series, Table

__all__ = ["digits", "digits_and_labels", "earthquakes", "fashion_labels", "fashion_mnist", "iris", "melodies"]

_FASHION = "/usr/share/datasets/fashion-mnist"


def digits() -> Dataset:
    """1797 handwritten digits, 8 x 8 pixels of 17 levels (UCI, through scikit-learn)."""
    x, _ = digits_and_labels()
    return Dataset("digits", x, Array((8, 8), levels=17), "Alpaydin and Kaynak (1998), UCI; scikit-learn's copy")


def digits_and_labels() -> tuple[np.ndarray, np.ndarray]:
    """The pictures, int64 (1797, 8, 8), and what they show, int64 (1797,) from 0 to 9."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as missing:
        raise MissingExtra("scikit-learn", "sklearn") from missing
    found = load_digits()
    return found.images.astype(np.int64), found.target.astype(np.int64)


def iris() -> Dataset:
    """150 irises: four lengths in cm, rounded to 0.1, and the species (Fisher 1936, through scikit-learn)."""
    try:
        from sklearn.datasets import load_iris
    except ImportError as missing:
        raise MissingExtra("scikit-learn", "sklearn") from missing
    data = load_iris()
    names = [name.removesuffix(" (cm)").replace(" ", "_") for name in data.feature_names]
    species = [str(name) for name in data.target_names]
    columns: dict[str, Any] = {name: np.round(data.data[:, i], 1) for i, name in enumerate(names)}
    columns["species"] = np.array([species[i] for i in data.target])
    event = Table({**{name: Real("cm", 0.1) for name in names}, "species": Category(tuple(species))}, missing=False)
    return Dataset("iris", columns, event, "Fisher (1936); scikit-learn's copy")


# World counts of earthquakes of magnitude 7 or more, 1900-2006: Zucchini, MacDonald and Langrock (2016), table 1.1
_EARTHQUAKES = """
13 14 8 10 16 26 32 27 18 32 36 24 22 23 22 18 25 21 21 14 8 11 14 23 18 17 19 20 22 19 13 26 13 14 22 24 21 22 26 21
23 24 27 41 31 27 35 26 28 36 39 21 17 22 17 19 15 34 10 15 22 18 15 20 15 22 19 16 30 27 29 23 20 16 21 21 25 16 18
15 18 14 10 15 8 15 6 11 8 7 18 16 13 12 13 20 15 16 12 18 15 16 13 15 16 11 11
"""


def earthquakes() -> Dataset:
    """Earthquakes of magnitude 7 or more in the world, a count a year from 1900 to 2006."""
    counts = np.array(_EARTHQUAKES.split(), dtype=np.int64)
    return Dataset(
        "earthquakes", [counts], Series(support="count"), "Zucchini, MacDonald and Langrock (2016), 1900-2006"
    )


def melodies() -> Dataset:
    """39 public-domain tunes; a step is a pitch code (0 rest, else MIDI note - 51) and a duration in sixteenths."""
    with resources.as_file(resources.files("probgen.datasets") / "data" / "melodies.csv") as path:
        columns, _, _ = frames.columns(frames.read(path))
    tune, pitch, duration = (columns[name][0] for name in ("tune", "pitch", "duration"))
    codes = np.stack([np.where(pitch == 0, 0, pitch - 51), duration], axis=1).astype(np.int64)
    starts = np.flatnonzero(np.r_[True, tune[1:] != tune[:-1]])
    x = np.split(codes, starts[1:])
    levels = (int(codes[:, 0].max()) + 1, int(codes[:, 1].max()) + 1)
    return Dataset("melodies", x, Series((2,), levels=levels, missing=False), "traditional tunes, see NOTICE")


def fashion_mnist(folder: str | PathLike | None = None) -> Dataset:
    """70 000 pictures of clothes, 28 x 28 pixels of 256 levels, from idx files.

    Arguments:
        folder: Of the four idx files; None takes Debian's package dataset-fashion-mnist.
    """
    x = _fashion("images-idx3-ubyte", folder)
    return Dataset("fashion_mnist", x, Array((28, 28), levels=256), "Xiao, Rasul and Vollgraf (2017), MIT licence")


def fashion_labels(folder: str | PathLike | None = None) -> np.ndarray:
    """What the pictures of fashion_mnist show, uint8 (70000,) from 0 to 9."""
    return _fashion("labels-idx1-ubyte", folder)


def _fashion(kind: str, folder: str | PathLike | None) -> np.ndarray:
    """The cells of the training file and the test file, one after the other."""
    place = Path(folder or _FASHION)
    parts = [place / f"{part}-{kind}" for part in ("train", "t10k")]
    found = [path if path.exists() else path.with_name(path.name + ".gz") for path in parts]
    if lacking := [path for path in found if not path.exists()]:
        raise DataError(
            f"There is no {lacking[0].name} in {place}",
            "the idx files of Fashion-MNIST",
            "apt-get install dataset-fashion-mnist, or datasets.fashion_mnist(folder)",
        )
    return np.concatenate([read_idx(path) for path in found])
