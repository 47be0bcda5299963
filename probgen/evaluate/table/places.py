"""Where scores go: which files a run writes, which are whole already, and what it refuses to touch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from probgen.errors import ParameterError, StoreError
from probgen.frames import sinks, streams
from probgen.frames.streams import Part

__all__ = ["Places"]

_NAMES = {"model": "another model", "source": "other data", "options": "other options"}


class Places:
    """The outputs of a run.

    Arguments:
        output: A file, or for a folder of data a folder; None writes nothing.
        folder: Whether the data are a folder.
        about: Digest of the model and the options of the run.
        resume, overwrite: Whether whole outputs are kept, or replaced.

    Raises:
        StoreError: something is there already that is not asked to go, or was made from something else.
        ParameterError: options that do not fit the output.
    """

    def __init__(
        self, output: Path | None, data: Any, folder: bool, about: Mapping[str, Any], *, resume: bool, overwrite: bool
    ) -> None:
        self.output, self.folder, self.about = output, folder, dict(about)
        self.resume, self.overwrite = resume, overwrite
        if resume and overwrite:
            raise ParameterError("resume beside overwrite", "one of them: to keep what is whole, or to replace it")
        if output is None:
            if resume:
                raise ParameterError("resume without an output", "the output to go on with: -o PLACE", "Name it")
            return
        if folder:
            _check_folder(output, Path(data))
        else:
            self._check_file(output, in_memory=not isinstance(data, str | Path))

    def _check_file(self, output: Path, in_memory: bool) -> None:
        if output.suffix.lower() not in (".parquet", ".csv"):
            raise StoreError(f"The output {output}", "a name that ends in .parquet or .csv", "Rename it")
        if self.resume and (in_memory or output.suffix.lower() == ".csv"):
            came = "resume with a frame in memory" if in_memory else f"resume with {output}"
            raise ParameterError(came, "Parquet in and out: it keeps what it was made from", "Score it again")
        if output.is_dir():
            raise StoreError(f"The output {output} is a folder", "the name of a file", "Choose another")
        if output.exists() and not self.resume and not self.overwrite:
            raise StoreError(f"The output {output} exists already", "a new file", f"{_CHOICES} --resume")

    def label(self, part: Part) -> dict[str, Any]:
        """What a part's scores are made from, to be kept in their file."""
        source = None if part.path is None else streams.print_of(part.path)
        return {**self.about, "source": source, "part": part.name if self.folder else ""}

    def of(self, part: Part) -> Path | None:
        """The file of a part's scores."""
        if self.output is None or not self.folder:
            return self.output
        return (self.output / part.name).with_suffix(".parquet")

    def prepare(self, parts: Sequence[Part]) -> dict[str, int]:
        """Makes room, once all else is known to be in order.

        Returns:
            Rows of the parts that are whole already, by name.
        """
        if self.output is None:
            return {}
        if not self.folder:
            return self._finished(parts) if self.output.exists() and self.resume else {}
        targets = [self.of(part) for part in parts]
        if len(set(targets)) < len(targets):
            twice = next(str(t) for t in targets if targets.count(t) > 1)
            raise StoreError(f"Two parts would be scored into {twice}", "one name a part", "Rename one")
        if not self.output.exists() or not any(self.output.iterdir()):
            return {}
        there = self._ours()
        for path in sinks.remains(self.output):
            path.unlink()
        if self.resume:
            if strange := sorted(str(path) for path in set(there) - set(targets)):
                came = f"{strange[0]} holds scores of a part that the data do not have"
                raise StoreError(came, "scores of the same data", _ANEW)
            return self._finished(parts)
        for path in there:
            path.unlink()
        return {}

    def _ours(self) -> list[Path]:
        """The scores in the output folder; anything else there is refused."""
        output, left = self.output or Path(), set(sinks.remains(self.output or Path()))
        files = [path for path in output.rglob("*") if path.is_file() and path not in left]
        if other := [path for path in files if not sinks.label(path)[0]]:
            raise StoreError(f"{output} holds other files: {other[0].name}", "a new folder", "Choose another")
        if not (self.resume or self.overwrite):
            raise StoreError(f"{output} holds scores already", "a new folder", f"{_CHOICES} --resume")
        return files

    def _finished(self, parts: Sequence[Part]) -> dict[str, int]:
        found: dict[str, int] = {}
        for part in parts:
            path = self.of(part)
            if path is None or not path.exists():
                continue
            kept, rows = sinks.label(path)
            if not kept:
                raise StoreError(f"{path} is no file of scores", "what an interrupted run has left", "Choose another")
            self._compare(path, kept, self.label(part))
            found[part.name] = rows
        return found

    def _compare(self, path: Path, kept: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        for name, what in _NAMES.items():
            if kept.get(name) != wanted[name]:
                old, new = kept.get(name), wanted[name]
                pairs = []
                if isinstance(old, dict) and isinstance(new, dict):
                    pairs = [f"{k}={old.get(k)!r}, now {new[k]!r}" for k in new if old.get(k) != new[k]]
                told = f" ({'; '.join(pairs)})" if pairs else ""
                raise StoreError(f"{path} was scored from {what}{told}", "the same model, data and options", _ANEW)


_CHOICES = "Choose another, or add overwrite=True, --overwrite; an interrupted run goes on with resume=True,"
_ANEW = "Choose another output, or replace this one: overwrite=True, --overwrite"


def _check_folder(output: Path, data: Path) -> None:
    if output.suffix.lower() in (".parquet", ".csv") or output.is_file():
        came = f"The output {output} for a folder"
        raise StoreError(came, "a folder: each part gets a file of its own", "Name one without .parquet")
    one, other = output.resolve(), data.resolve()
    if one == other or other in one.parents or one in other.parents:
        came = f"The output {output} and the data {data} lie in each other"
        raise StoreError(came, "a folder apart from the data", "Choose another")
