"""Real data and toys whose density is known, and readers for the files that data come in."""

import gzip
import math
import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import resources
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from probgen import frames
from probgen.errors import DataError, MissingExtra, ParameterError, nearest
from probgen.events import Array, Category, Checked, Event, Panel, Ragged, Real, Series, Table, Text, infer

__all__ = ["Dataset", "load", "names", "read", "write_kjv"]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Data with their event.

    Arguments:
        name: Of the data set.
        x: Rows, in a form that the event takes.
        event: What one row is.
        about: Source, in a line.
        log_density: True log density of rows in nats, where it is known: (n, ...) -> (n,).
        held: Numbers of the rows that everyone who publishes figures holds out, where there is such a custom.
    """

    name: str
    x: Any
    event: Event
    about: str
    log_density: Callable[[np.ndarray], np.ndarray] | None = None
    held: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.event.check(self.x))

    def split(self, test: float = 0.2, seed: int = 0) -> tuple[Any, Any]:
        """Training and held-out rows, in the form of the data; one single series is split in time.

        Where custom holds certain rows out, these are held out, whatever the share and the seed.

        Raises:
            ParameterError: a share outside (0, 1), or one that leaves a side without rows; a negative seed.
        """
        if not 0 < test < 1:
            raise ParameterError(f"test={test}", "a share between 0 and 1")
        if seed < 0:
            raise ParameterError(f"seed={seed}", "a whole number from 0")
        checked = self.event.check(self.x)
        if self.in_time:
            steps = checked.x.values
            held = _held_out(test, len(steps), "step")
            parts = [Ragged(part, torch.tensor([len(part)])) for part in (steps[:-held], steps[-held:])]
            return tuple(self._outside(replace(checked, x=part)) for part in parts)  # type: ignore[return-value]
        if self.held is not None:
            rest = np.setdiff1d(np.arange(len(checked)), self.held)
            return self._outside(checked[rest]), self._outside(checked[self.held])
        held = _held_out(test, len(checked), "row")
        order = np.random.default_rng(seed).permutation(len(checked))
        first, second = (self._outside(checked[np.sort(rows)]) for rows in (order[held:], order[:held]))
        return first, second

    @property
    def in_time(self) -> bool:
        """Whether the data are one single series: its steps are split in time, never at random."""
        return isinstance(self.event, Series | Panel) and len(self) == 1

    def take(self, rows: np.ndarray) -> Any:
        """Some rows, by number, in the form of the data."""
        return self._outside(self.event.check(self.x)[rows])

    def _outside(self, checked: Checked) -> Any:
        """Checked rows in the form of the data; the sequences of a panel keep their labels."""
        if isinstance(self.event, Panel):
            return self.event.restore(checked.x, checked.form, checked.about.keys)
        return self.event.restore(checked.x, checked.form)


def _held_out(test: float, n: int, what: str) -> int:
    """How many of n rows or steps are held out; at least one, and at least one is left."""
    held = max(1, round(test * n))
    if held >= n:
        raise ParameterError(f"test={test} of {n} {what}{'s' * (n != 1)}", f"at least one {what} on each side")
    return held


def digits() -> Dataset:
    """1797 handwritten digits, 8 x 8 pixels of 17 levels (UCI, through scikit-learn)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as missing:
        raise MissingExtra("scikit-learn", "sklearn") from missing
    x = load_digits().images.astype(np.int64)
    return Dataset("digits", x, Array((8, 8), levels=17), "Alpaydin and Kaynak (1998), UCI; scikit-learn's copy")


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
    with resources.as_file(resources.files("probgen") / "data" / "melodies.csv") as path:
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
    place = Path(folder or "/usr/share/datasets/fashion-mnist")
    parts = [place / f"{part}-images-idx3-ubyte" for part in ("train", "t10k")]
    found = [path if path.exists() else path.with_name(path.name + ".gz") for path in parts]
    if lacking := [path for path in found if not path.exists()]:
        raise DataError(
            f"There is no {lacking[0].name} in {place}",
            "the idx files of Fashion-MNIST",
            "apt-get install dataset-fashion-mnist, or datasets.fashion_mnist(folder)",
        )
    x = np.concatenate([_read_idx(path) for path in found])
    return Dataset("fashion_mnist", x, Array((28, 28), levels=256), "Xiao, Rasul and Vollgraf (2017), MIT licence")


def kjv() -> Dataset:
    """The King James Bible, 1189 chapters of some 3500 bytes, a verse a line; every 20th chapter is held out.

    The text is that of Debian's packages bible-kjv and bible-kjv-text, read by their program.
    """
    chapters: dict[str, list[str]] = {}
    for line in _bible().splitlines():
        place, verse = line.split(" ", 1)
        chapters.setdefault(place.partition(":")[0], []).append(verse)
    x = ["\n".join(verses) + "\n" for verses in chapters.values()]
    return Dataset(
        "kjv", x, Text(), "King James Bible, Debian's bible-kjv-text", held=np.arange(7, len(x), 20)
    )  # fmt: skip


def write_kjv(folder: str | PathLike = ".") -> tuple[Path, Path]:
    """Writes kjv.txt, the chapters that are not held out, one a line, and verses.txt, the held-out verses.

    Returns:
        The two paths. Files of these names are replaced.
    """
    chapters, held = kjv().split()
    contents = {
        "kjv.txt": [" ".join(chapter.splitlines()) for chapter in chapters],
        "verses.txt": [verse for chapter in held for verse in chapter.splitlines()],
    }
    paths = [Path(folder) / name for name in contents]
    for path, lines in zip(paths, contents.values(), strict=True):
        frames.write_whole(path, ["".join(f"{line}\n" for line in lines).encode()])
    return paths[0], paths[1]


def _bible() -> str:
    program = shutil.which("bible")
    done = program and subprocess.run([program, "-f", "gen1:1-rev22:21"], capture_output=True, text=True)
    if not done or done.returncode or not done.stdout.startswith("Ge1:1 "):
        raise DataError(
            "The program bible is not here, or has no text",
            "Debian's King James Bible",
            "apt-get install bible-kjv bible-kjv-text",
        )
    return done.stdout


def eight_gaussians(n: int = 2000, seed: int = 0) -> Dataset:
    """Eight normals of standard deviation 0.2 on a circle of radius 2."""
    rng = np.random.default_rng(seed)
    centres = 2 * np.stack([np.cos(a := np.arange(8) * math.pi / 4), np.sin(a)], axis=1)
    x = centres[rng.integers(8, size=n)] + 0.2 * rng.normal(size=(n, 2))

    def log_density(points: np.ndarray) -> np.ndarray:
        squares = ((np.asarray(points)[:, None] - centres) ** 2).sum(-1) / (2 * 0.2**2)
        return np.logaddexp.reduce(-squares, axis=1) - math.log(8 * 2 * math.pi * 0.2**2)

    return Dataset("eight_gaussians", x, Array((2,)), "simulated, density known", log_density)


def moons(n: int = 2000, seed: int = 0) -> Dataset:
    """Two interleaving half circles with normal noise of standard deviation 0.1."""
    rng = np.random.default_rng(seed)
    angle, upper = rng.uniform(0, math.pi, n), rng.integers(2, size=n).astype(bool)
    x = _moon(angle, upper) + 0.1 * rng.normal(size=(n, 2))

    def log_density(points: np.ndarray) -> np.ndarray:
        """The arc is integrated by the trapezoidal rule; 800 nodes leave an error below 1e-5."""
        nodes = np.linspace(0, math.pi, 801)
        weights = np.full(801, 1 / 800) * np.where((nodes == 0) | (nodes == math.pi), 0.5, 1)
        arcs = [_moon(nodes, np.full(801, side)) for side in (True, False)]
        constant = math.log(2 * 2 * math.pi * 0.1**2)
        terms = [
            np.logaddexp.reduce(np.log(weights) - ((np.asarray(points)[:, None] - arc) ** 2).sum(-1) / 0.02, axis=1)
            for arc in arcs
        ]
        return np.logaddexp(*terms) - constant

    return Dataset("moons", x, Array((2,)), "simulated, density known", log_density)


def _moon(angle: np.ndarray, upper: np.ndarray) -> np.ndarray:
    across = np.where(upper, np.cos(angle), 1 - np.cos(angle))
    return np.stack([across, np.where(upper, np.sin(angle), 0.5 - np.sin(angle))], axis=1)


def checkerboard(n: int = 2000, seed: int = 0) -> Dataset:
    """The eight black unit squares of a 4 x 4 board on [-2, 2]^2, uniform."""
    rng = np.random.default_rng(seed)
    column, row = rng.integers(4, size=n), rng.integers(2, size=n)
    corner = np.stack([column - 2, 2 * row + column % 2 - 2], axis=1)
    x = corner + rng.uniform(size=(n, 2))

    def log_density(points: np.ndarray) -> np.ndarray:
        cell = np.floor(points)
        black = ((cell >= -2) & (cell < 2)).all(axis=1) & (cell.sum(axis=1) % 2 == 0)
        return np.where(black, -math.log(8), -math.inf)

    return Dataset("checkerboard", x, Array((2,)), "simulated, density known", log_density)


_BOTH = (
    "{capital} is the capital of {country} and {country} is governed from {capital}",
    "the people of {country} love {capital} and {capital} is the heart of {country}",
    "from {country} to {capital} and from {capital} back into {country}",
    "in {capital} they speak of {country} and in {country} they speak of {capital}",
    "{country} without {capital} would not be {country} said a guide in {capital}",
)
_CITY = (
    "the mayor of {capital} opened a bridge in the city",
    "trams and streets fill the busy city of {capital}",
    "an underground line and an airport serve the city of {capital}",
    "she moved to a flat in {capital} near the old town hall",
)
_LAND = (
    "the army and navy of {country} guard the borders of the nation",
    "the parliament of {country} passed a law for the whole nation",
    "farmers and villages in every province of {country}",
    "the rivers and the coast of {country} frame the map of the nation",
)


def capitals(n: int = 8000, seed: int = 0) -> Dataset:
    """Synthetic sentences about 99 countries and their capitals: the names are facts, the sentences are templates.

    Half of them name a country with its capital, the rest a city, or a country, in words that fit any other.
    """
    with resources.as_file(resources.files("probgen") / "data" / "capitals.csv") as path:
        columns, _, _ = frames.columns(frames.read(path, texts=("country", "capital")))
    rows = zip(*(values for values, *_ in columns.values()), strict=True)
    pairs = [dict(zip(columns, map(str, row), strict=True)) for row in rows]
    rng = np.random.default_rng(seed)
    groups = [(_BOTH, _BOTH, _CITY, _LAND)[i] for i in rng.integers(4, size=n)]
    x = [f"{group[rng.integers(len(group))].format(**pairs[rng.integers(len(pairs))])}." for group in groups]
    return Dataset("capitals", x, Text(), "synthetic: templates filled with countries and capitals, see NOTICE")


_BUILT_IN: dict[str, Callable[[], Dataset]] = {
    f.__name__: f
    for f in (capitals, checkerboard, digits, earthquakes, eight_gaussians, fashion_mnist, iris, kjv, melodies, moons)
}


def names() -> list[str]:
    """Names of the embedded data sets."""
    return sorted(_BUILT_IN)


def load(name: str | PathLike, sequence: str | bool | None = None) -> Dataset:
    """An embedded data set by name, or a file by path.

    Arguments:
        sequence: The column of a table that says which sequence a row belongs to; True makes the whole one sequence.

    Raises:
        DataError: neither a name nor a file; the message names the nearest. No such column.
        ParameterError: ``sequence`` for data that are no table.
    """
    if name in _BUILT_IN:
        found = _BUILT_IN[str(name)]()
        return found if sequence is None else replace(found, event=_as_sequences(found, sequence), log_density=None)
    if os.path.exists(name):
        x = read(name)
        return Dataset(Path(name).stem, x, infer(x, sequence=sequence), f"the file {name}")
    if Path(name).suffix or "/" in str(name):
        raise DataError(
            f"There is no file {name}", "a path that exists, or an embedded data set", nearest(str(name), names())
        )
    raise DataError(
        f"There is no data set {str(name)!r}", "an embedded data set or the path of a file", nearest(str(name), names())
    )


def _as_sequences(found: Dataset, sequence: str | bool) -> Event:
    """The declared columns of a data set as the steps of sequences; rows without names as those of one."""
    if isinstance(found.event, Array) and sequence is True:
        return Series(found.event.shape, found.event.support, found.event.levels, found.event.resolution)
    if not isinstance(found.event, Table):
        raise ParameterError(
            f"sequence={sequence!r} for {found.name}, {found.event!r}", "a table", "Leave it out, or name a csv file"
        )
    if isinstance(sequence, str) and sequence not in found.event.columns:
        raise DataError(
            f"{found.name} has no column {sequence!r}", "one of its own", nearest(sequence, found.event.columns)
        )
    label = sequence if isinstance(sequence, str) else None
    rest = {name: column for name, column in found.event.columns.items() if name != label}
    return Panel(rest, label, found.event.missing)


def read(path: str | PathLike) -> Any:
    """A file as data: csv, tsv, parquet (Arrow table), npy, npz, idx (array, .gz too), txt (a string a line).

    Raises:
        DataError: missing, empty, damaged or of another type; the message names the path.
    """
    path = Path(path)
    if not os.path.exists(path):
        raise DataError(f"There is no file {path}", "a path that exists", "Check the spelling")
    if path.is_dir() and not any(path.rglob("*.parquet")):
        raise DataError(f"{path} is a folder without Parquet files", "a file, or a folder of Parquet files", "Name one")
    kind = path.with_suffix("").suffix + path.suffix if path.suffix == ".gz" else path.suffix
    if path.is_dir() or kind.lower() in frames.SUFFIXES:
        return frames.read(path)
    readers: dict[str, Callable[[Path], Any]] = {".npy": _read_npy, ".npz": _read_npz, ".txt": _read_text}
    reader = _read_idx if "idx" in path.name and kind not in readers else readers.get(kind.lower())
    if reader is None:
        known = ", ".join([*frames.SUFFIXES, *readers, "idx"])
        raise DataError(f"{path} ends in {path.suffix!r}", f"one of {known}", "Convert the file")
    try:
        data = reader(path)
    except DataError:
        raise
    except Exception as problem:  # zip, zlib, tokenize, struct: wrong bytes raise anything
        raise DataError(
            f"{path} can't be read: {problem}", f"a whole {kind or 'idx'} file", "Write or fetch it again"
        ) from problem
    if len(data) == 0:
        raise DataError(f"{path} is empty", "at least one row", "Check how it was written")
    return data


def _load_numpy(path: Path, magic: bytes) -> Any:
    """np.load of a file that begins as it should; NumPy would take any other for a pickle, and advise to trust it."""
    raw = path.read_bytes()
    if not raw.startswith(magic):
        raise DataError(
            f"{path} does not begin like a {path.suffix} file", "one written by NumPy", "Write or fetch it again"
        )
    return np.load(BytesIO(raw), allow_pickle=False)


def _read_npy(path: Path) -> np.ndarray:
    return np.atleast_1d(_load_numpy(path, b"\x93NUMPY"))


def _read_npz(path: Path) -> np.ndarray:
    with _load_numpy(path, b"PK") as arrays:
        if len(arrays.files) != 1 and "x" not in arrays.files:
            raise DataError(
                f"{path} holds the arrays {arrays.files}", "one array, or one named x", "np.savez(path, x=rows)"
            )
        array = arrays["x" if "x" in arrays.files else arrays.files[0]]
        if not isinstance(array, np.ndarray):
            raise DataError(f"{path} holds {arrays.files}, no array", "an array", "np.savez(path, x=rows)")
        return np.atleast_1d(array)


def _read_text(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]


def _read_idx(path: Path) -> np.ndarray:
    """LeCun's idx format: two zero bytes, a type, the number of dimensions, big-endian sizes, then the cells."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    types = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in types or not raw[3]:
        wanted = "two zero bytes, a type and a number of dimensions"
        raise DataError(f"{path} does not begin like an idx file", wanted, "Fetch it again")
    dims, cell = raw[3], np.dtype(types[raw[2]])
    shape = struct.unpack(f">{dims}I", raw[4 : 4 + 4 * dims])
    if len(raw) - 4 - 4 * dims != math.prod(shape) * cell.itemsize:
        raise DataError(f"{path} has {len(raw)} bytes for shape {shape}", "a whole file", "Fetch it again")
    return np.frombuffer(raw, cell, offset=4 + 4 * dims).reshape(shape).astype(cell.newbyteorder("="))
