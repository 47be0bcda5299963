"""The commands: fit, score, sample, compare, card."""

import functools
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from probgen.cli import outputs
from probgen.cli.options import (
    estimator_of,
    family_name,
    family_of,
    fitted,
    model_of,
    options_of,
    seconds_of,
    sequence_of,
)
from probgen.cli.outputs import say, show_text
from probgen.errors import FitError, ParameterError, ProbgenError, StoreError

__all__ = ["app", "main"]

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
_Model = Annotated[
    Path,
    typer.Argument(help="Folder of a saved model, or a network's file: .bif, .bif.gz, .xmlbif, .net, .uai, .xdsl."),
]
_Sequence = Annotated[
    str | None,
    typer.Option(help="Column of a table that says which sequence a row belongs to; - makes the whole one sequence."),
]
_Seed = Annotated[int, typer.Option(min=0, help="Of every random draw.")]
_Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]
_DONE, _OURS, _YOURS, _INTERRUPTED = 0, 1, 2, 130


def _command(**settings: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command whose failures become exit codes: never a traceback for a user's mistake."""

    def register(run: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(run)
        def guarded(*args: Any, **kwargs: Any) -> None:
            try:
                with outputs.noted_warnings():
                    run(*args, **kwargs)
            except ProbgenError as problem:
                say(f"probgen: {problem}")
                raise SystemExit(_OURS if isinstance(problem, FitError) else _YOURS) from None
            except KeyboardInterrupt:
                say("probgen: interrupted; nothing was written")
                raise SystemExit(_INTERRUPTED) from None
            except BrokenPipeError:
                outputs.mute()
                raise SystemExit(_DONE) from None
            except OSError as problem:
                outputs.mute()
                say(f"probgen: the system refuses: {problem}. Wanted: paths that may be used, and room. Check them.")
                raise SystemExit(_YOURS) from None
            except Exception:
                traceback.print_exc()
                say("probgen: this is a defect of probgen, not of your input. Please report it with the lines above.")
                raise SystemExit(_OURS) from None

        return app.command(**settings)(guarded)

    return register


def main() -> None:
    """The entry point of the command ``probgen``."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # half-written folders are removed
    app()


@_command(context_settings=_FREE)
def fit(
    context: typer.Context,
    family: Annotated[
        str,
        typer.Argument(
            help="For rows: mixture, bayesnet, vae, flow, gan, kerneldensity, gaussiancopula, independent. "
            "For sequences: hmm, statespace, independent."
        ),
    ],
    data: _Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the model.")],
    sequence: _Sequence = None,
    seed: _Seed = 0,
    overwrite: _Overwrite = False,
) -> None:
    """Fit a FAMILY to DATA and save it. Further options are the family's own: --components 16 --budget 30.

    bayesnet learns a network's graph and tables (--score bic|aic|bdeu|k2, --method tabu|hill|exact|chow-liu|tan) and
    draws it: graph.png in the folder.
    """
    from probgen import datasets, store

    options = options_of(context.args)
    family_of(family)
    rows = datasets.load(data, sequence_of(sequence))
    outputs.refuse_taken(output, overwrite)
    model = fitted(family, rows.event, rows.x, options, seed)
    report = model.report
    if report.stopped == "interrupted" and not report.objective:
        raise KeyboardInterrupt
    store.save(model, output)
    show_text(f"{outputs.shortened(repr(model))}\n{outputs.told(model, rows.event.check(rows.x).x)}")
    for note in report.notes:
        show_text(note)
    if picture := outputs.draw_graph(model, output):
        show_text(f"{outputs.counted(len(model.edges), 'edge')}, drawn in {picture}")
    if report.stopped == "interrupted":
        say(f"probgen: interrupted; the best state so far is saved in {output}")
        raise SystemExit(_INTERRUPTED)
    show_text(f"saved in {output}; next: probgen score {output} {data}")


@_command()
def score(
    model: _Model,
    data: _Data,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="scores.parquet or .csv, a row a data row.")
    ] = None,
    by: Annotated[str | None, typer.Option(help="Estimator: iwae:samples=500, elbo:samples=64, enumerate.")] = None,
    steps: Annotated[
        bool, typer.Option("--steps", help="A row a step of each sequence: log p(step | all steps before it).")
    ] = False,
    sequence: _Sequence = None,
    seed: _Seed = 0,
    overwrite: _Overwrite = False,
) -> None:
    """Score DATA under a saved MODEL: a summary, and with -o a table of every row. With --steps every step is printed.

    A model that was fitted to sequences of a table knows the column that names them.
    """
    from probgen import frames
    from probgen.events import Table

    if steps and by is not None:
        raise ParameterError(
            f"--by {by} beside --steps", "one of them: an estimator scores whole rows", "Leave one out"
        )
    estimator = estimator_of(by)
    outputs.refuse_output(output, (".parquet", ".csv"), overwrite)
    scorer = model_of(model)
    _refuse_another_column(scorer.event, sequence)
    rows = _rows(data, scorer.event, sequence)
    answer = scorer.log_prob_steps(rows, seed=seed) if steps else scorer.log_prob(rows, by=estimator, seed=seed)
    if output is not None:
        frames.write(answer.frame(), output)
    elif steps:
        show_text("step,log_prob")
        for line in answer.frame().select(["row", "log_prob"]).to_pylist():
            show_text(f"{line['row']},{'' if line['log_prob'] is None else line['log_prob']}")
    told = repr(answer).replace(answer.measure, outputs.shortened(answer.measure))
    (say if steps and output is None else show_text)(told)
    if not (steps or isinstance(scorer.event, Table)) and (
        each := outputs.per_step(answer, scorer.event.check(rows).x)
    ):
        show_text(each)
    if output is not None:
        show_text(f"{outputs.counted(len(answer), 'row')} written to {output}")


def _rows(data: str, event: Any, sequence: str | None) -> Any:
    """Rows to score. A table is read for the model's columns: in a csv, levels that are text stay text (TRUE, 007)."""
    from probgen import datasets, frames
    from probgen.events import Table

    if isinstance(event, Table) and sequence is None and Path(data).suffix.lower() in frames.SUFFIXES:
        return frames.read(data, event.texts)
    return datasets.load(data, sequence_of(sequence)).x


def _refuse_another_column(event: Any, sequence: str | None) -> None:
    """A model scores sequences that are named as those it was fitted to."""
    fitted = getattr(event, "sequence", None)
    if isinstance(chosen := sequence_of(sequence), str) and chosen != fitted:
        wanted = f"--sequence {fitted}" if fitted else f"no --sequence: the model was fitted to {event!r}"
        raise ParameterError(f"--sequence {sequence}", wanted, "The model knows its column: leave --sequence out")


@_command()
def sample(
    model: _Model,
    n: Annotated[int, typer.Option("-n", help="Draws.")] = 1,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help=".csv, .parquet, .npy or .png; else standard output.")
    ] = None,
    length: Annotated[int | None, typer.Option(min=1, help="Steps of each sequence.")] = None,
    seed: _Seed = 0,
    overwrite: _Overwrite = False,
) -> None:
    """Draw from a saved MODEL; what the draws come from is said beside them."""
    from probgen import frames
    from probgen.events import Panel, Series

    outputs.refuse_output(output, (".csv", ".parquet", ".npy", ".png"), overwrite)
    source = model_of(model)
    if length is not None and not isinstance(source.event, Series | Panel):
        came = f"--length {length} for a model of {source.event!r}"
        raise ParameterError(came, "a model of sequences", "Leave it out")
    draws = source.event.check(source.sample(n, seed=seed, **({} if length is None else {"length": length}))).x
    say(f"{outputs.counted(n, 'draw')} from {source.sample_target()} of {type(source).__name__}, seed {seed}")
    if output is None:
        from probgen.evaluate.outputs import csv_lines

        for line in csv_lines(draws, source.event):
            show_text(line)
        return
    _write_samples(draws, source, output, frames)
    say(f"written to {output}")


def _write_samples(draws: Any, fitted: Any, output: Path, frames: Any) -> None:
    from io import BytesIO

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
    rows: Annotated[
        int,
        typer.Option(
            help="Held-out rows to score at most, a random subset, the same for all; fewer where a family is slow."
        ),
    ] = 500,
    test: Annotated[float, typer.Option(help="Share of rows held out.")] = 0.2,
    sequence: _Sequence = None,
    seed: _Seed = 0,
    overwrite: _Overwrite = False,
) -> None:
    """Fit every family that suits DATA, and compare them on held-out rows in one table.

    One single series is split in time: its last steps are held out, and each is scored given all steps before it.
    """
    from probgen import datasets
    from probgen.evaluate.run import compare_into

    if rows < 1:
        raise ParameterError(f"--rows {rows}", "at least 1", "Leave it out for 500")
    seconds = seconds_of(budget)
    chosen = None if families is None else [family_name(name) for name in families.split(",")]
    place = outputs.free_folder(data, out, overwrite)
    loaded = datasets.load(data, sequence_of(sequence))
    with outputs.whole_folder(place) as folder:
        result, title = compare_into(
            folder, loaded, families=chosen, budget=seconds, rows=rows, test=test, seed=seed, say=say
        )
    outputs.show(result, title)
    show_text(f"scores.parquet, summary.parquet, samples.png and models/ are in {place}")


@_command()
def card(model: _Model) -> None:
    """Print the card of a saved MODEL: family, constructor, event, fit, versions, checksum; short lists on one line."""
    from probgen import store

    if model.is_dir():
        about, tensors = store.read(model)
    else:
        read = model_of(model)
        about, tensors = store.card(read), dict(read.state_dict())
    about["shapes"] = {name: list(tensor.shape) for name, tensor in tensors.items()}
    plain = "utf" not in (getattr(sys.stdout, "encoding", None) or "utf-8").lower()
    show_text(outputs.compact(outputs.readable(about), plain))
