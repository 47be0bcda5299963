"""What the command line says and writes: lines, tables, and folders that appear whole or not at all."""

import json
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from probgen.errors import StoreError

__all__ = [
    "compact", "counted", "draw_graph", "encodable", "mute", "noted_warnings", "per_step", "readable",
    "refuse_output", "refuse_taken", "say", "shortened", "show", "show_text", "told", "whole_folder",
]  # fmt: skip


@contextmanager
def noted_warnings() -> Iterator[None]:
    """Warnings as a line each, without the place in the code."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: say(f"probgen: note: {message}")
        yield


def say(text: str) -> None:
    """A message; what files hold may be quoted in it, so control characters are made visible."""
    shown = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
    print(encodable(shown, sys.stderr), file=sys.stderr, flush=True)  # noqa: T201


def show_text(text: str) -> None:
    """A result, on standard output."""
    print(encodable(text, sys.stdout), flush=True)  # noqa: T201


def encodable(text: str, stream: Any) -> str:
    """Text that the stream's encoding can hold."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.replace("±", "+-").encode(encoding, "backslashreplace").decode(encoding)
    return text


def shortened(text: str, most: int = 600) -> str:
    """The beginning of a text that is too long to be read; a network's is as long as its columns are many."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def mute() -> None:
    """Sends what is left for a broken standard output nowhere."""
    with suppress(AttributeError, OSError):  # closed, or no file at all
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def counted(n: int, what: str) -> str:
    """1 row, 2 rows."""
    return f"{n} {what}" + "s" * (n != 1)


def told(model: Any, cells: Any) -> str:
    """What a fit gained and how it ended, in a line: in nats a row; of sequences in nats a step.

    Arguments:
        cells: What the model was fitted to.
    """
    from probgen.events import Ragged

    report, unit = model.report, "step" if isinstance(cells, Ragged) else "row"
    gained = " -> ".join(f"{report.objective[i]:.4f}" for i in (0, -1)) if report.objective else "-"
    ended = "their limit reached" if report.stopped == "steps" else report.stopped
    done = f"{counted(report.steps, 'iteration')}, {ended}, {report.seconds:.1f} s"
    return f"objective {gained} nats/{unit}, {done}"


def per_step(answer: Any, cells: Any) -> str:
    """The log-likelihood of sequences a step, in a line; empty for other rows and for refusals."""
    from probgen.events import Ragged

    if not isinstance(cells, Ragged) or answer.refused.any() or answer.event.bytes is not None:
        return ""
    steps = len(cells.values)
    whole = f"a row is a whole sequence: {counted(len(cells), 'sequence')} of {counted(steps, 'step')}"
    return f"{whole}{' together' * (len(cells) != 1)}, {answer.sum().value / steps:.4f} nats/step"


def per_byte(answer: Any) -> str:
    """The rate of text, in a line; empty for other data and for refusals."""
    if answer.event is None or answer.event.bytes is None or answer.refused.any():
        return ""
    rate = answer.bits_per_byte()
    at_most = "at most " if answer.kind == "lower" else ""
    return f"{at_most}{rate.value:.4f} bits/byte over {int(answer.event.bytes.sum())} bytes"


def draw_graph(model: Any, folder: Path) -> Path | None:
    """Draws the graph of a model that has one beside it, as graph.png; an older model's is removed."""
    picture = folder / "graph.png"
    if not hasattr(model, "edges"):
        picture.unlink(missing_ok=True)
        return None
    model.plot(picture)
    return picture


def readable(card: Any) -> Any:
    """A card with the store's marks for Python's mappings undone, for people to read."""
    if isinstance(card, list):
        return [readable(item) for item in card]
    if not isinstance(card, dict):
        return card
    if set(card) == {"dict"} and all(isinstance(key, str) for key, _ in card["dict"]):
        return {key: readable(item) for key, item in card["dict"]}
    return {key: readable(item) for key, item in card.items()}


def compact(value: Any, plain: bool = False, indent: str = "", room: int = 120) -> str:
    """JSON text: what fits on a line stands on one, lists of more are filled line by line, mappings go a key a line.

    Arguments:
        plain: Whether in ASCII alone.
        room: Characters a line.
    """
    line = json.dumps(value, ensure_ascii=plain)
    if not value or not isinstance(value, dict | list) or len(indent) + len(line) <= room:
        return line
    inner = indent + "  "
    if isinstance(value, dict):
        names = [json.dumps(str(key), ensure_ascii=plain) for key in value]
        parts = [f"{n}: {compact(v, plain, inner, room)}" for n, v in zip(names, value.values(), strict=True)]
        return "{\n" + ",\n".join(inner + part for part in parts) + f"\n{indent}}}"
    lines, parts = [""], [compact(item, plain, inner, room) for item in value]
    for i, part in enumerate(parts):
        part += "," * (i + 1 < len(parts))
        joined = f"{lines[-1]} {part}" if lines[-1] else part
        lines[-1:] = [joined] if len(inner) + len(joined) <= room else [lines[-1], part] if lines[-1] else [part]
    return "[\n" + "\n".join(inner + line for line in lines) + f"\n{indent}]"


def show(result: Any, title: str) -> None:
    """The table on a terminal, plain text anywhere else."""
    if sys.stdout is None or not sys.stdout.isatty():
        show_text(f"{title}\n{result}")
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    rows = result.texts()
    widths, left_out = fitting(rows, console.width)
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for column, width in widths.items():
        text = column in ("family", "kind", "by")
        table.add_column(column, justify="left" if text else "right", overflow="fold", min_width=width, max_width=width)
    styles = {"exact": "green", "lower": "cyan", "upper": "cyan", "estimate": "yellow", "unavailable": "dim"}
    for row in rows:
        table.add_row(*(row[column] for column in widths), style=styles.get(row["kind"], ""))
    console.print(table)
    if left_out:
        console.print(f"Too narrow for: {', '.join(left_out)}. They are in summary.parquet.", highlight=False)
    for note in [*result.notes(), *result.by_samples()]:
        console.print(note, highlight=False, markup=False)


def fitting(rows: list[dict[str, str]], room: int) -> tuple[dict[str, int], list[str]]:
    """Columns that fit on a terminal, with their widths, and those that don't; what a number is stays longest."""
    widths = {
        name: max(len(word) for word in [*name.split(), *(row[name] for row in rows)]) for name in rows[0]
    }  # fmt: skip
    widest = max(len(row["by"]) for row in rows)
    widths["by"] = min(widths["by"], 12)
    left_out = []
    dear = ("fit s", "by", "bits/dim", "bits/byte", "between rows ±", "paired ±", "vs best", "Monte Carlo ±")
    droppable = [name for name in dear if name in widths]
    for name in sorted(droppable, key=lambda name: any(row[name] != "-" for row in rows)):  # empty ones first
        if sum(widths.values()) + 3 * len(widths) + 1 > room:
            del widths[name]
            left_out.append(name)
    if "by" in widths:
        spare = room - sum(widths.values()) - 3 * len(widths) - 1
        widths["by"] += max(0, min(widest - widths["by"], spare))
    return widths, left_out


def refuse_taken(folder: Path, overwrite: bool) -> None:
    """Says before the work, not after it, that a model can't be written there."""
    parent = next((p for p in [folder, *folder.parents] if p.exists()), Path())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        came = f"{folder} can't be written: {parent} is no folder one may write to"
        raise StoreError(came, "a folder", "Choose another place")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not (folder / "card.json").exists():
        raise StoreError(f"{folder} holds other files", "a new folder", "Choose another place")
    if not overwrite:
        raise StoreError(f"{folder} holds a model already", "a new folder", "Choose another, or add --overwrite")


def refuse_output(output: Path | None, kinds: tuple[str, ...], overwrite: bool) -> None:
    """Says before the work, not after it, that a file can't be written."""
    if output is None:
        return
    if output.suffix.lower() not in kinds:
        raise StoreError(f"--output {output}", f"a name that ends in one of {', '.join(kinds)}", "Rename it")
    if not output.parent.is_dir() or not os.access(output.parent, os.W_OK):
        came = f"--output {output}: {output.parent} is no folder one may write to"
        raise StoreError(came, "a folder that exists", "Make it, or choose another place")
    if output.is_dir() or (output.exists() and not overwrite):
        do = "Choose another" if output.is_dir() else "Choose another, or add --overwrite"
        raise StoreError(f"--output {output} exists already", "the name of a new file", do)


@contextmanager
def whole_folder(place: Path) -> Iterator[Path]:
    """A folder that appears under its name only when everything in it is written; then an older one goes."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    except OSError as problem:
        came = f"{place} can't be made: {problem.strerror}"
        raise StoreError(came, "a place one may write to", "Choose another folder") from problem
    new, old = work / "new", work / "old"
    try:
        new.mkdir()
        yield new
        if place.exists():
            place.rename(old)
        new.rename(place)
    finally:
        if old.exists() and not place.exists():
            old.rename(place)
        shutil.rmtree(work, ignore_errors=True)
