"""The command line: fit, score, sample, compare, card."""

import functools
import inspect
import json
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

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
_Seed = Annotated[int, typer.Option(help="Of every random draw.")]
_DONE, _OURS, _YOURS, _INTERRUPTED = 0, 1, 2, 130


def _command(**settings: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command whose failures become exit codes: never a traceback for a user's mistake."""

    def register(run: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(run)
        def guarded(*args: Any, **kwargs: Any) -> None:
            try:
                run(*args, **kwargs)
            except ProbgenError as problem:
                _say(f"probgen: {problem}")
                raise SystemExit(_OURS if isinstance(problem, FitError) else _YOURS) from None
            except KeyboardInterrupt:
                _say("probgen: interrupted; nothing was written")
                raise SystemExit(_INTERRUPTED) from None
            except BrokenPipeError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise SystemExit(_DONE) from None
            except Exception:
                traceback.print_exc()
                _say("probgen: this is a defect of probgen, not of your input. Please report it with the lines above.")
                raise SystemExit(_OURS) from None

        return app.command(**settings)(guarded)

    return register


def main() -> None:
    """The entry point of the command ``probgen``."""
    app()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def _print(text: str) -> None:
    print(text, flush=True)  # noqa: T201


def _options(extra: list[str]) -> dict[str, Any]:
    """``--name value`` pairs that typer does not know: a family's own options."""
    options: dict[str, Any] = {}
    words = iter(extra)
    for word in words:
        if not word.startswith("--"):
            raise ParameterError(f"The word {word!r}", "options as --name value")
        name, equals, value = word[2:].partition("=")
        value = value if equals else next(words, "")
        if not value:
            raise ParameterError(f"The option --{name} without a value", f"--{name} VALUE")
        options[name.replace("-", "_")] = _value(value)
    return options


def _value(text: str) -> Any:
    """A number, true, false, null, a list 64,64, or else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        pass
    return tuple(_value(part) for part in text.split(",")) if "," in text else text


def _build(family: str, event: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A model for an event from its constructor's options; the rest must be its fit's."""
    from probgen import store

    made_by = store.family(family)
    mine = [name for name in inspect.signature(made_by).parameters if name != "event"]
    fits = inspect.signature(made_by._fit).parameters
    theirs = [n for n, p in fits.items() if p.kind is p.KEYWORD_ONLY and n not in ("generator", "progress")]
    for name in options:
        if name not in (*mine, *theirs):
            raise ParameterError(f"{made_by.__name__} has no option --{name}", "", nearest(name, [*mine, *theirs]))
    if why := made_by.suits(event):
        raise DataError(f"{made_by.__name__} does not suit {event!r}: {why}", "", "Try: probgen compare DATA")
    model = made_by.for_event(event, **{k: v for k, v in options.items() if k in mine})
    return model, {k: v for k, v in options.items() if k in theirs}


@_command(context_settings=_FREE)
def fit(
    context: typer.Context,
    family: Annotated[str, typer.Argument(help="mixture, vae, gan, independent, kerneldensity, gaussiancopula.")],
    data: _Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the model.")],
    seed: _Seed = 0,
) -> None:
    """Fit a FAMILY to DATA and save it. Further options are the family's own: --components 16 --budget 30."""
    from probgen import datasets, store

    options = _options(context.args)
    store.family(family)
    rows = datasets.load(data)
    _refuse_foreign(output)
    model, fitting = _build(family, rows.event, options)
    model.fit(rows.x, seed=seed, **fitting)
    store.save(model, output)
    report = model.report
    gained = f"{report.objective[0]:.4f} -> {report.objective[-1]:.4f}" if report.objective else "-"
    _print(f"{model!r}\nobjective {gained} nats/row, {report.steps} steps, {report.stopped}, {report.seconds:.1f} s")
    for note in report.notes:
        _print(note)
    _print(f"saved in {output}; next: probgen score {output} {data}")


def _refuse_foreign(folder: Path) -> None:
    """Says before the work, not after it, that an output can't be written."""
    parent = next((p for p in [folder, *folder.parents] if p.exists()), Path())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise StoreError(f"{folder} can't be written: {parent} is no folder one may write to", "another place")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "card.json").exists():
        raise StoreError(f"{folder} holds other files", "a new folder, or one with a model to replace")


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
                f"--by {text}: no option {option!r}", "", nearest(option, inspect.signature(made_by).parameters)
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
) -> None:
    """Score DATA under a saved MODEL: a summary, and with -o a table of every row."""
    from probgen import datasets, frames, store

    estimator = _estimator(by)
    if output is not None and output.suffix not in (".parquet", ".csv"):
        raise StoreError(f"--output {output}", "a name that ends in .parquet or .csv")
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
) -> None:
    """Draw from a saved MODEL; what the draws come from is said beside them."""
    from probgen import frames, store

    kinds = (".csv", ".parquet", ".npy", ".png")
    if output is not None and output.suffix not in kinds:
        raise StoreError(f"--output {output}", f"a name that ends in one of {', '.join(kinds)}")
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
    from probgen.evaluate.samples import sample_table
    from probgen.events import Ragged

    if output.suffix == ".png":
        cells = draws.values if isinstance(draws, Ragged) else draws
        plots.samples({f"{type(fitted).__name__}, target {fitted.sample_target()}": cells.numpy()}, output)
    elif output.suffix == ".npy":
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
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing --out folder.")] = False,
) -> None:
    """Fit every family that suits DATA, and compare them on held-out rows in one table."""
    from probgen import datasets

    if rows < 1:
        raise ParameterError(f"--rows {rows}", "at least 1")
    seconds = _seconds(budget)
    chosen = None if families is None else [_family_name(name) for name in families.split(",") if name]
    place = _free_folder(data, out, overwrite)
    loaded = datasets.load(data)
    with _whole_folder(place, overwrite) as folder:
        _compare_into(folder, place, loaded, chosen, seconds, rows, test, seed)
    _print(f"scores.parquet, summary.parquet, samples.png and models/ are in {place}")


def _family_name(name: str) -> str:
    from probgen import store

    try:
        return store.family(name.strip()).__name__
    except StoreError as problem:
        raise ParameterError(problem.came, problem.wanted, problem.do) from None


def _compare_into(
    folder: Path, place: Path, loaded: Any, chosen: list[str] | None, seconds: float, rows: int, test: float, seed: int
) -> None:
    import numpy as np

    from probgen import frames, plots, store
    from probgen.errors import MissingExtra
    from probgen.evaluate.compare import compare as compare_models
    from probgen.evaluate.compare import fit_suitable, panels

    train, held = loaded.split(test, seed)
    checked = loaded.event.check(held)
    subset = len(checked) > rows
    if subset:
        kept = np.sort(np.random.default_rng(seed).permutation(len(checked))[:rows])
        held = loaded.event.restore(checked[kept].x, checked.form)
    n = len(loaded.event.check(train))
    _say(
        f"{loaded.name} ({loaded.about}): {n} rows to fit, {len(checked)} held out"
        + (f", {rows} of them scored" if subset else "")
    )

    def starting(name: str, share: float | None) -> None:
        _say(f"  fitting {name}" + ("" if share is None else f" for {share:.0f} s"))

    models, skipped = fit_suitable(train, loaded.event, families=chosen, budget=seconds, seed=seed, on_start=starting)
    if not models:
        raise DataError(f"No family suits {loaded.event!r}: {skipped}", "an event that some family suits")
    result = compare_models(models, held, seed=seed, skipped=skipped, on_start=lambda name: _say(f"  scoring {name}"))
    for name, model in models.items():
        store.save(model, folder / "models" / name)
    frames.write(result.scores(), folder / "scores.parquet")
    frames.write(result.frame(), folder / "summary.parquet")
    try:
        plots.samples(panels(models, held, loaded.event, seed), folder / "samples.png")
    except MissingExtra as missing:
        _say(f"no samples.png: {missing}")
    _show(result, f"{loaded.name}: {len(loaded.event.check(held))} held-out rows")


def _show(result: Any, title: str) -> None:
    """The table on a terminal, plain text anywhere else."""
    if not sys.stdout.isatty():
        _print(f"{title}\n{result}")
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from probgen.evaluate.compare import COLUMNS, format_cell

    console = Console()
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for column in COLUMNS:
        text = column in ("family", "kind", "by")
        table.add_column(column, justify="left" if text else "right", overflow="fold")
    styles = {"exact": "green", "lower": "cyan", "upper": "cyan", "estimate": "yellow", "unavailable": "dim"}
    for entry in result.entries:
        row = entry.cells()
        table.add_row(*map(format_cell, row.values()), style=styles.get(row["kind"], ""))
    console.print(table)
    for note in result.notes():
        console.print(note, highlight=False, markup=False)


def _seconds(text: str) -> float:
    """60, 60s, 10m, 1h as seconds."""
    units = {"s": 1, "m": 60, "h": 3600}
    number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1)
    try:
        seconds = float(number) * unit
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise ParameterError(f"--budget {text}", "a positive time such as 60, 60s, 10m or 1h")
    return seconds


def _free_folder(data: str, out: Path | None, overwrite: bool) -> Path:
    """The output folder: as asked, or the first free name."""
    if out is None:
        stem = f"comparison-{Path(data).stem}"
        return next(p for p in (Path(stem if i == 1 else f"{stem}-{i}") for i in range(1, 10_000)) if not p.exists())
    if out.exists() and not (overwrite and (not out.is_dir() or (out / "scores.parquet").exists())):
        hint = "--overwrite" if (out / "scores.parquet").exists() else "another folder"
        raise StoreError(f"--out {out} exists already", "a new folder", f"Choose {hint}")
    return out


@contextmanager
def _whole_folder(place: Path, overwrite: bool) -> Iterator[Path]:
    """A folder that appears under its name only when everything in it is written."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    except OSError as problem:
        raise StoreError(f"{place} can't be made: {problem.strerror}", "a place one may write to") from problem
    try:
        yield work
        work.chmod(0o755)
        if place.exists() and overwrite:
            shutil.rmtree(place)
        work.rename(place)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@_command()
def card(model: Annotated[Path, typer.Argument(help="Folder of a saved model.")]) -> None:
    """Print the card of a saved MODEL: family, constructor, event, fit, versions, checksum."""
    from probgen import store

    about, tensors = store.read(model)
    about["shapes"] = {name: list(tensor.shape) for name, tensor in tensors.items()}
    _print(json.dumps(about, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
