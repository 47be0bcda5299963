"""Texts: the King James Bible, and sentences about countries and their capitals."""

import shutil
import subprocess
from importlib import resources
from os import PathLike
from pathlib import Path

import numpy as np

from probgen import frames
from probgen.datasets.dataset import Dataset
from probgen.errors import DataError
from probgen.events import Text

__all__ = ["capitals", "kjv", "write_kjv"]


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
    with resources.as_file(resources.files("probgen.datasets") / "data" / "capitals.csv") as path:
        columns, _, _ = frames.columns(frames.read(path, texts=("country", "capital")))
    rows = zip(*(values for values, *_ in columns.values()), strict=True)
    pairs = [dict(zip(columns, map(str, row), strict=True)) for row in rows]
    rng = np.random.default_rng(seed)
    groups = [(_BOTH, _BOTH, _CITY, _LAND)[i] for i in rng.integers(4, size=n)]
    x = [f"{group[rng.integers(len(group))].format(**pairs[rng.integers(len(pairs))])}." for group in groups]
    return Dataset("capitals", x, Text(), "synthetic: templates filled with countries and capitals, see NOTICE")
