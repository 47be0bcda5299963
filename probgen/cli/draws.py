"""Draws of a model in a file."""

import json
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from probgen.errors import StoreError

__all__ = ["refuse_folder", "text_lines", "write_records", "write_samples"]

_SHOWN = 24  # records of a picture


def write_samples(draws: Any, fitted: Any, output: Path, frames: Any) -> None:
    import numpy as np

    from probgen import plots
    from probgen.evaluate.compare import column_names, level_names
    from probgen.evaluate.outputs import sample_table
    from probgen.events import Ragged

    kind = output.suffix.lower()
    if kind == ".png":
        title, names = f"{type(fitted).__name__}, target {fitted.sample_target()}", column_names(fitted.event)
        if isinstance(draws, Ragged):
            parts, levels = [part.numpy() for part in draws.split()], level_names(fitted.event)
            plots.series({title: parts}, output, names=names, levels=levels)
        else:
            plots.samples({title: draws.numpy()}, output, names=names)
    elif kind == ".npy":
        if isinstance(draws, Ragged):
            raise StoreError(f"--output {output} for series", ".csv or .parquet, which keep their lengths")
        sink = BytesIO()
        np.save(sink, draws.numpy(), allow_pickle=False)
        frames.write_whole(output, [sink.getvalue()])
    else:
        table = sample_table(draws, fitted.event)
        frames.write(table.replace_schema_metadata({"target": fitted.sample_target()}), output)


def refuse_folder(output: Path | None, overwrite: bool) -> None:
    """Says before the work that records can't be written there: they take a folder."""
    if output is None:
        return
    if output.suffix:
        raise StoreError(f"--output {output} for records", "a folder, for pictures, numbers and texts", "Rename it")
    ours = output.is_dir() and {path.name for path in output.iterdir()} <= {"draws.jsonl", "draws.npz", "draws.png"}
    if output.exists() and not (ours and overwrite):
        do = "Choose another, or add --overwrite" if ours else "Choose another"
        raise StoreError(f"--output {output} exists already", "the name of a new folder", do)


def text_lines(draws: Mapping[str, Any], event: Any) -> Iterator[str]:
    """The parts of text of records, a JSON object a line."""
    from probgen.events import Text

    names = [name for name, part in event.parts.items() if isinstance(part, Text)]
    for texts in zip(*(draws[name] for name in names), strict=True):
        yield json.dumps(dict(zip(names, texts, strict=True)), ensure_ascii=False)


def _packed(arrays: Mapping[str, Any]) -> bytes:
    """An npz file; ``numpy.savez`` takes no array whose name is one of its own arguments."""
    import numpy as np

    whole = BytesIO()
    with ZipFile(whole, "w") as archive:
        for name, array in arrays.items():
            sink = BytesIO()
            np.save(sink, array, allow_pickle=False)
            archive.writestr(f"{name}.npy", sink.getvalue())
    return whole.getvalue()


def write_records(draws: Mapping[str, Any], event: Any, title: str, folder: Path, frames: Any) -> None:
    """Texts as lines of JSON, numbers as one npz file, and where a part is a picture the first ones drawn."""
    import numpy as np

    from probgen.events import Array, Text

    arrays = {name: np.asarray(draws[name]) for name, part in event.parts.items() if isinstance(part, Array)}
    texts = [name for name, part in event.parts.items() if isinstance(part, Text)]
    if arrays:
        frames.write_whole(folder / "draws.npz", [_packed(arrays)])
    if texts:
        lines = [f"{line}\n".encode() for line in text_lines(draws, event)]
        frames.write_whole(folder / "draws.jsonl", lines)
    pictures = [x for x in arrays.values() if x.ndim == 3 or (x.ndim == 4 and x.shape[-1] == 3)]
    if pictures:
        from probgen.plots.captions import captioned

        n = min(len(pictures[0]), _SHOWN)
        said = [str(text) for text in draws[texts[0]][:n]] if texts else [""] * n
        rows = {f"{title}, {i + 1} to {min(i + 8, n)}": (pictures[0][i : i + 8], said[i : i + 8])
                for i in range(0, n, 8)}  # fmt: skip
        captioned(rows, folder / "draws.png")
