"""The command line: fit, score, sample, compare, card."""

import functools
import inspect
import json
import math
import os
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, get_args, get_origin

import typer

from probgen.errors import DataError, FitError, ParameterError, ProbgenError, StoreError, nearest

__all__ = ["main"]

app = typer.Typer(
    name="probgen",
    help="How probable is this data under any generative model, and what kind of number is that?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_FREE = {"allow_extra_args": True, "ignore_unknown_options": True}
_Data = Annotated[
    str, typer.Argument(help="An embedded data set (digits, iris, ...) or a csv, parquet, npz, idx, txt file.")
]
_Seed = Annotated[int, typer.Option(min=0, help="Of every random draw.")]
_Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]
_COMPARISON = {"models", "samples.png", "scores.parquet", "summary.parquet"}
_DONE, _OURS, _YOURS, _INTERRUPTED = 0, 1, 2, 130


def _command(**settings: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command whose failures become exit codes: never a traceback for a user's mistake."""

    def register(run: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(run)
        def guarded(*args: Any, **kwargs: Any) -> None:
            try:
                with _noted_warnings():
                    run(*args, **kwargs)
            except ProbgenError as problem:
                _say(f"probgen: {problem}")
                raise SystemExit(_OURS if isinstance(problem, FitError) else _YOURS) from None
            except KeyboardInterrupt:
                _say("probgen: interrupted; nothing was written")
                raise SystemExit(_INTERRUPTED) from None
            except BrokenPipeError:
                _mute()
                raise SystemExit(_DONE) from None
            except OSError as problem:
                _mute()
                _say(f"probgen: the system refuses: {problem}. Wanted: paths that may be used, and room. Check them.")
                raise SystemExit(_YOURS) from None
            except Exception:
                traceback.print_exc()
                _say("probgen: this is a defect of probgen, not of your input. Please report it with the lines above.")
                raise SystemExit(_OURS) from None

        return app.command(**settings)(guarded)

    return register


def main() -> None:
    """The entry point of the command ``probgen``."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # half-written folders are removed
    app()


@contextmanager
def _noted_warnings() -> Iterator[None]:
    """Warnings as a line each, without the place in the code."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: _say(f"probgen: note: {message}")
        yield


def _say(text: str) -> None:
    """A message; what files hold may be quoted in it, so control characters are made visible."""
    shown = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
    print(_encodable(shown, sys.stderr), file=sys.stderr, flush=True)  # noqa: T201


def _print(text: str) -> None:
    """A result, on standard output."""
    print(_encodable(text, sys.stdout), flush=True)  # noqa: T201


def _encodable(text: str, stream: Any) -> str:
    """Text that the stream's encoding can hold."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.replace("±", "+-").encode(encoding, "backslashreplace").decode(encoding)
    return text


def _mute() -> None:
    """Sends what is left for a broken standard output nowhere."""
    with suppress(AttributeError, OSError):  # closed, or no file at all
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _options(extra: list[str]) -> dict[str, str]:
    """``--name value`` pairs that typer does not know: a family's own options."""
    options: dict[str, str] = {}
    words = iter(extra)
    for word in words:
        if not word.startswith("--"):
            raise ParameterError(f"The word {word!r}", "options as --name value", "Quote values that hold spaces")
        name, equals, value = word[2:].partition("=")
        value = value if equals else next(words, "")
        if not value:
            raise ParameterError(f"The option --{name} without a value", f"--{name} VALUE", "Give one")
        options[name.replace("-", "_")] = value
    return options


def _value(text: str) -> Any:
    """A number, true, false, null, a list 64,64, or else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        pass
    return tuple(_value(part) for part in text.split(",") if part) if "," in text else text


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Sequence: "numbers as 64,64"}


def _typed(option: str, text: str, hint: Any) -> Any:
    """An option's value, of the type that the constructor or the fit declares for it."""
    if option == "--budget":
        return _seconds(text)
    value = _value(text)
    for candidate in (value, text, (value,)):
        if _is_a(candidate, hint):
            return candidate
    kinds = [k for k in (get_args(hint) if isinstance(hint, UnionType) else [hint]) if k is not type(None)]
    wanted = " or ".join(_KINDS.get(get_origin(kind) or kind, f"{kind.__name__}, in Python") for kind in kinds)
    raise ParameterError(f"{option} {text}", wanted, "Leave it out for the default")


def _is_a(value: Any, hint: Any) -> bool:
    """Whether a value has a declared type: a number is finite, a whole number or a truth value nothing else."""
    if isinstance(hint, UnionType):
        return any(_is_a(value, part) for part in get_args(hint))
    if get_origin(hint) is Sequence:
        return isinstance(value, list | tuple) and all(_is_a(part, get_args(hint)[0]) for part in value)
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is hint


def _build(family: str, event: Any, options: dict[str, str]) -> tuple[Any, dict[str, Any]]:
    """A model for an event from its constructor's options; the rest must be its fit's."""
    from probgen import store

    made_by = store.family(family)
    mine = {n: p.annotation for n, p in inspect.signature(made_by).parameters.items() if n != "event"}
    fits = inspect.signature(made_by._fit).parameters.items()
    theirs = {n: p.annotation for n, p in fits if p.kind is p.KEYWORD_ONLY and n not in ("generator", "progress")}
    known = {name: f"--{name.replace('_', '-')}" for name in (*mine, *theirs)}
    for name in options:
        if name not in known:
            option = f"--{name.replace('_', '-')}"
            raise ParameterError(f"{made_by.__name__} has no option {option}", "", nearest(option, known.values()))
    if why := made_by.suits(event):
        raise DataError(
            f"{made_by.__name__} does not suit {event!r}: {why}", "a family that does", "Try: probgen compare DATA"
        )
    values = {name: _typed(known[name], text, (mine | theirs)[name]) for name, text in options.items()}
    model = made_by.for_event(event, **{k: v for k, v in values.items() if k in mine})
    return model, {k: v for k, v in values.items() if k in theirs}


@_command(context_settings=_FREE)
def fit(
    context: typer.Context,
    family: Annotated[str, typer.Argument(help="mixture, vae, gan, independent, kerneldensity, gaussiancopula.")],
    data: _Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the model.")],
    seed: _Seed = 0,
    overwrite: _Overwrite = False,
) -> None:
    """Fit a FAMILY to DATA and save it. Further options are the family's own: --components 16 --budget 30."""
    from probgen import datasets, store

    options = _options(context.args)
    store.family(family)
    rows = datasets.load(data)
    _refuse_taken(output, overwrite)
    model, fitting = _build(family, rows.event, options)
    model.fit(rows.x, seed=seed, **fitting)
    report = model.report
    if report.stopped == "interrupted" and not report.objective:
        raise KeyboardInterrupt
    store.save(model, output)
    gained = f"{report.objective[0]:.4f} -> {report.objective[-1]:.4f}" if report.objective else "-"
    _print(f"{model!r}\nobjective {gained} nats/row, {report.steps} steps, {report.stopped}, {report.seconds:.1f} s")
    for note in report.notes:
        _print(note)
    if report.stopped == "interrupted":
        _say(f"probgen: interrupted; the best state so far is saved in {output}")
        raise SystemExit(_INTERRUPTED)
    _print(f"saved in {output}; next: probgen score {output} {data}")


def _refuse_taken(folder: Path, overwrite: bool) -> None:
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


def _refuse_output(output: Path | None, kinds: tuple[str, ...], overwrite: bool) -> None:
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


def _estimator(text: str | None) -> Any:
    """``iwae:samples=500`` as an estimator."""
    from probgen import estimate

    if text is None:
        return None
    name, _, rest = text.partition(":")
    known = {n.lower(): getattr(estimate, n) for n in estimate.__all__}
    if name.lower() not in known:
        raise ParameterError(f"--by {text}", "an estimator such as iwae:samples=500", nearest(name.lower(), known))
    made_by = known[name.lower()]
    options = dict(part.partition("=")[::2] for part in rest.split(",")) if rest else {}
    for option in options:
        if option not in inspect.signature(made_by).parameters:
            raise ParameterError(
                f"--by {text} has no option {option!r}", "", nearest(option, inspect.signature(made_by).parameters)
            )
    return made_by(**{k: _value(v) for k, v in options.items()})


@_command()
def score(
    model: Annotated[Path, typer.Argument(help="Folder of a saved model.")],
    data: _Data,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="scores.parquet or .csv, a row a data row.")
    ] = None,
    by: Annotated[str | None, typer.Option(help="Estimator: iwae:samples=500, elbo:samples=64, enumerate.")] = None,
    seed: _Seed = 0,
    overwrite: _Overwrite = False,
) -> None:
    """Score DATA under a saved MODEL: a summary, and with -o a table of every row."""
    from probgen import datasets, frames, store

    estimator = _estimator(by)
    _refuse_output(output, (".parquet", ".csv"), overwrite)
    fitted = store.load(model)
    answer = fitted.log_prob(datasets.load(data).x, by=estimator, seed=seed)
    if output is not None:
        frames.write(answer.frame(), output)
    _print(repr(answer))
    if output is not None:
        _print(f"{len(answer)} rows written to {output}")


@_command()
def sample(
    model: Annotated[Path, typer.Argument(help="Folder of a saved model.")],
    n: Annotated[int, typer.Option("-n", help="Draws.")] = 1,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help=".csv, .parquet, .npy or .png; else standard output.")
    ] = None,
    seed: _Seed = 0,
    overwrite: _Overwrite = False,
) -> None:
    """Draw from a saved MODEL; what the draws come from is said beside them."""
    from probgen import frames, store

    _refuse_output(output, (".csv", ".parquet", ".npy", ".png"), overwrite)
    fitted = store.load(model)
    draws = fitted.event.check(fitted.sample(n, seed=seed)).x
    _say(f"{n} draws from {fitted.sample_target()} of {type(fitted).__name__}, seed {seed}")
    if output is None:
        from probgen.evaluate.samples import csv_lines

        for line in csv_lines(draws, fitted.event):
            _print(line)
        return
    _write_samples(draws, fitted, output, frames)
    _say(f"written to {output}")


def _write_samples(draws: Any, fitted: Any, output: Path, frames: Any) -> None:
    from io import BytesIO

    import numpy as np

    from probgen import plots
    from probgen.evaluate.compare import column_names
    from probgen.evaluate.samples import sample_table
    from probgen.events import Ragged

    kind = output.suffix.lower()
    if kind == ".png":
        cells = draws.values if isinstance(draws, Ragged) else draws
        title = f"{type(fitted).__name__}, target {fitted.sample_target()}"
        plots.samples({title: cells.numpy()}, output, names=column_names(fitted.event))
    elif kind == ".npy":
        if isinstance(draws, Ragged):
            raise StoreError(f"--output {output} for series", ".csv or .parquet, which keep their lengths")
        sink = BytesIO()
        np.save(sink, draws.numpy(), allow_pickle=False)
        frames.write_whole(output, [sink.getvalue()])
    else:
        table = sample_table(draws, fitted.event)
        frames.write(table.replace_schema_metadata({"target": fitted.sample_target()}), output)


@_command()
def compare(
    data: _Data,
    families: Annotated[
        str | None, typer.Option(help="Names, separated by commas; all that suit if not given.")
    ] = None,
    budget: Annotated[str, typer.Option(help="Seconds of training for all families together: 60, 60s, 10m.")] = "60s",
    out: Annotated[
        Path | None, typer.Option(help="Folder for scores, models and pictures; a new one if not given.")
    ] = None,
    rows: Annotated[int, typer.Option(help="Held-out rows to score at most, a random subset, the same for all.")] = 500,
    test: Annotated[float, typer.Option(help="Share of rows held out.")] = 0.2,
    seed: _Seed = 0,
    overwrite: _Overwrite = False,
) -> None:
    """Fit every family that suits DATA, and compare them on held-out rows in one table."""
    from probgen import datasets
    from probgen.evaluate.run import compare_into

    if rows < 1:
        raise ParameterError(f"--rows {rows}", "at least 1", "Leave it out for 500")
    seconds = _seconds(budget)
    chosen = None if families is None else [_family_name(name) for name in families.split(",")]
    place = _free_folder(data, out, overwrite)
    loaded = datasets.load(data)
    with _whole_folder(place) as folder:
        result, title = compare_into(
            folder, loaded, families=chosen, budget=seconds, rows=rows, test=test, seed=seed, say=_say
        )
    _show(result, title)
    _print(f"scores.parquet, summary.parquet, samples.png and models/ are in {place}")


def _family_name(name: str) -> str:
    from probgen import store

    try:
        return store.family(name.strip()).__name__
    except StoreError as problem:
        raise ParameterError(problem.came, problem.wanted, problem.do) from None


def _show(result: Any, title: str) -> None:
    """The table on a terminal, plain text anywhere else."""
    if sys.stdout is None or not sys.stdout.isatty():
        _print(f"{title}\n{result}")
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    rows = result.texts()
    widths, left_out = _fitting(rows, console.width)
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for column, width in widths.items():
        text = column in ("family", "kind", "by")
        table.add_column(column, justify="left" if text else "right", overflow="fold", min_width=width)
    styles = {"exact": "green", "lower": "cyan", "upper": "cyan", "estimate": "yellow", "unavailable": "dim"}
    for row in rows:
        table.add_row(*(row[column] for column in widths), style=styles.get(row["kind"], ""))
    console.print(table)
    if left_out:
        console.print(f"Too narrow for: {', '.join(left_out)}. They are in summary.parquet.", highlight=False)
    for note in result.notes():
        console.print(note, highlight=False, markup=False)


def _fitting(rows: list[dict[str, str]], room: int) -> tuple[dict[str, int], list[str]]:
    """Columns that fit on a terminal, with their widths, and those that don't; what a number is stays longest."""
    widths = {
        name: max(len(word) for word in [*name.split(), *(row[name] for row in rows)]) for name in rows[0]
    }  # fmt: skip
    widths["by"] = min(widths["by"], 12)
    left_out = []
    for name in ("fit s", "by", "bits/dim", "between rows ±", "Monte Carlo ±"):
        if sum(widths.values()) + 3 * len(widths) + 1 > room:
            del widths[name]
            left_out.append(name)
    return widths, left_out


def _seconds(text: str) -> float:
    """60, 60s, 10m, 1h as seconds."""
    units = {"s": 1, "m": 60, "h": 3600}
    number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1)
    try:
        seconds = float(number) * unit
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise ParameterError(
            f"--budget {text}", "a positive time such as 60, 60s, 10m or 1h", "Leave it out for the default"
        )
    return seconds


def _free_folder(data: str, out: Path | None, overwrite: bool) -> Path:
    """The output folder: as asked, or the first free name."""
    if out is None:
        stem = f"comparison-{Path(data).stem}"
        return next(
            p for p in (Path(stem if i == 1 else f"{stem}-{i}") for i in range(1, 10_000)) if not os.path.exists(p)
        )
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return out
    ours = out.is_dir() and (out / "scores.parquet").exists() and {p.name for p in out.iterdir()} <= _COMPARISON
    if not (ours and overwrite):
        do = "Choose another folder, or add --overwrite" if ours else "Choose another folder"
        raise StoreError(f"--out {out} exists already", "a new folder", do)
    return out


@contextmanager
def _whole_folder(place: Path) -> Iterator[Path]:
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


@_command()
def card(model: Annotated[Path, typer.Argument(help="Folder of a saved model.")]) -> None:
    """Print the card of a saved MODEL: family, constructor, event, fit, versions, checksum."""
    from probgen import store

    about, tensors = store.read(model)
    about["shapes"] = {name: list(tensor.shape) for name, tensor in tensors.items()}
    plain = "utf" not in (getattr(sys.stdout, "encoding", None) or "utf-8").lower()
    _print(json.dumps(about, indent=2, ensure_ascii=plain))


if __name__ == "__main__":
    main()
