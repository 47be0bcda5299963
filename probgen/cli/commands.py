"""The commands: fit, score, sample, compare, compress, decompress, card."""

import functools
import shlex
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from probgen.cli import outputs
from probgen.cli.options import (
    choice_of,
    draws_text,
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
_DONE, _OURS, _YOURS, _PARTLY, _INTERRUPTED = 0, 1, 2, 3, 130
_LARGE = 1 << 24  # bytes of a file that is not read whole


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
            help="For rows: mixture, bayesnet, vae, flow, diffusion, gan, kerneldensity, gaussiancopula, independent. "
            "For sequences: hmm, statespace, independent. For text: language, ngram (--tokens 2048: in tokens)."
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
        Path | None,
        typer.Option("--output", "-o", help="scores.parquet or .csv, a row a data row; for a folder of data a folder."),
    ] = None,
    by: Annotated[str | None, typer.Option(help="Estimator: iwae:samples=500, elbo:samples=64, enumerate.")] = None,
    steps: Annotated[
        bool, typer.Option("--steps", help="A row a step of each sequence: log p(step | all steps before it).")
    ] = False,
    sequence: _Sequence = None,
    key: Annotated[
        str | None, typer.Option(help="Column that stands beside the scores instead of row numbers.")
    ] = None,
    engine: Annotated[str | None, typer.Option(help="processes (on this machine, where worth it) or dask.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; 1 stays in one; as many as cores if needed.")] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Of dask: tcp://HOST:PORT of a cluster; else one is begun on this machine.")
    ] = None,
    skip_corrupt: Annotated[
        bool,
        typer.Option("--skip-corrupt", help="Leave out, and name, files of a folder that can't be scored; exit 3."),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run: files of a folder that are whole are kept.")
    ] = False,
    seed: _Seed = 0,
    overwrite: _Overwrite = False,
) -> None:
    """Score DATA under a saved MODEL: a summary, and with -o a table of every row. With --steps every step is printed.

    A model that was fitted to sequences of a table knows the column that names them. DATA may be a folder of Parquet
    files, each a partition, and may be larger than memory.
    """
    from probgen import frames
    from probgen.events import Table

    if steps and by is not None:
        raise ParameterError(
            f"--by {by} beside --steps", "one of them: an estimator scores whole rows", "Leave one out"
        )
    estimator = None if by is None else estimator_of(by)
    asked = {"key": key, "engine": engine, "workers": workers, "scheduler": scheduler, "resume": resume or None}
    asked["skip_corrupt"] = skip_corrupt or None
    asked = {name: value for name, value in asked.items() if value is not None}
    if asked or Path(data).is_dir():
        _refuse_beside(asked, data, steps, sequence)
        _score_table(model_of(model), data, output, by=estimator, seed=seed, overwrite=overwrite, **asked)
        return
    outputs.refuse_output(output, (".parquet", ".csv"), overwrite)
    scorer = model_of(model)
    _refuse_another_column(scorer.event, sequence)
    if not steps and sequence is None and _is_large(data, scorer.event):
        _score_table(scorer, data, output, by=estimator, seed=seed, overwrite=overwrite)
        return
    rows = _rows(data, scorer, sequence)
    answer = scorer.log_prob_steps(rows, seed=seed) if steps else scorer.log_prob(rows, by=estimator, seed=seed)
    if output is not None:
        frames.write(answer.frame(), output)
    elif steps:
        show_text("step,log_prob")
        for line in answer.frame().select(["row", "log_prob"]).to_pylist():
            show_text(f"{line['row']},{'' if line['log_prob'] is None else line['log_prob']}")
    told = repr(answer).replace(answer.measure, outputs.shortened(answer.measure))
    (say if steps and output is None else show_text)(told)
    if not steps and (rate := outputs.per_byte(answer)):
        show_text(rate)
    if not (steps or isinstance(scorer.event, Table)) and (
        each := outputs.per_step(answer, scorer.event.check(rows).x)
    ):
        show_text(each)
    if output is not None:
        show_text(f"{outputs.counted(len(answer), 'row')} written to {output}")


def _refuse_beside(asked: dict[str, Any], data: str, steps: bool, sequence: str | None) -> None:
    """Steps are scored in memory: none of the options of large tables goes with them."""
    option = "--steps" if steps else f"--sequence {sequence}" if sequence is not None else ""
    if option:
        other = f"--{next(iter(asked)).replace('_', '-')}" if asked else f"the folder {data}"
        raise ParameterError(f"{option} beside {other}", "rows of a table, or one file of sequences", "Leave one out")


def _is_large(data: str, event: Any) -> bool:
    """Whether a file of rows is scored batch by batch."""
    from probgen import frames
    from probgen.events import Array, Table

    path = Path(data)
    rows = isinstance(event, Table) or (isinstance(event, Array) and len(event.shape) <= 1)
    return rows and path.suffix.lower() in frames.SUFFIXES and path.is_file() and path.stat().st_size >= _LARGE


def _score_table(scorer: Any, data: str, output: Path | None, **options: Any) -> None:
    """Scores a file or folder of any size; says what was left out, also by the exit code."""
    from probgen.evaluate.table import score_table

    try:
        done = score_table(scorer, data, output, keep=False, **options)
    except KeyboardInterrupt:
        if output is None or not Path(data).is_dir():
            raise
        say(f"probgen: interrupted; the files that are whole are in {output}: go on with --resume")
        raise SystemExit(_INTERRUPTED) from None
    _say_ignored(done.ignored)
    if done.before:
        rows = outputs.counted(sum(done.before.values()), "row")
        show_text(f"{rows} of {outputs.counted(len(done.before), 'file')} were scored before")
    if done.rows:
        show_text(f"LogProb({outputs.shortened(str(done.summary))})")
    where = "" if output is None else f" written to {output}"
    if done.parts:
        show_text(f"{outputs.counted(done.rows, 'row')} of {outputs.counted(len(done.parts), 'file')}{where}")
    for name, why in done.skipped.items():
        say(f"probgen: skipped {name}: {why}")
    if done.skipped:
        raise SystemExit(_PARTLY)


def _say_ignored(columns: Any) -> None:
    if columns:
        shown = ", ".join(map(repr, columns[:8])) + (f" and {len(columns) - 8} more" if len(columns) > 8 else "")
        say(f"probgen: note: columns that the model does not know are left alone: {shown}")


def _rows(data: str, scorer: Any, sequence: str | None) -> Any:
    """Rows to score. A table is read for the model's columns: in a csv, levels that are text stay text (TRUE, 007)."""
    from probgen import datasets, frames
    from probgen.events import Table
    from probgen.frames import streams

    event = scorer.event
    if isinstance(event, Table) and sequence is None and Path(data).suffix.lower() in frames.SUFFIXES:
        found, extra = streams.known(frames.read(data, event.texts), event.columns)
        _say_ignored(extra)
        return streams.cells(found) if Path(data).suffix.lower() in (".parquet", ".pq") else found
    return datasets.load(data, sequence_of(sequence)).x


def _refuse_another_column(event: Any, sequence: str | None) -> None:
    """A model scores sequences that are named as those it was fitted to."""
    fitted = getattr(event, "sequence", None)
    if isinstance(chosen := sequence_of(sequence), str) and chosen != fitted:
        wanted = f"--sequence {fitted}" if fitted else f"no --sequence: the model was fitted to {event!r}"
        raise ParameterError(f"--sequence {sequence}", wanted, "The model knows its column: leave --sequence out")


@_command(context_settings=_FREE)
def sample(
    context: typer.Context,
    model: _Model,
    n: Annotated[int, typer.Option("-n", help="Draws.")] = 1,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help=".csv, .parquet, .npy, .png or .txt; else standard output.")
    ] = None,
    given: Annotated[str | None, typer.Option(help="The beginning of the text to draw.")] = None,
    length: Annotated[int | None, typer.Option(min=1, help="Steps of a sequence; most symbols of a text.")] = None,
    seed: _Seed = 0,
    overwrite: _Overwrite = False,
) -> None:
    """Draw from a saved MODEL; what the draws come from is said beside them.

    A language model takes --temperature, --top-k, --top-p, --min-p and --repetition-penalty, too; one text is shown
    while it is drawn.
    """
    from probgen import frames
    from probgen.events import Panel, Series, Text

    asks_text = output is not None and output.suffix.lower() == ".txt"
    kinds = (".txt",) if asks_text and draws_text(model) else (".csv", ".parquet", ".npy", ".png")
    outputs.refuse_output(output, kinds, overwrite)
    words = options_of(context.args)
    source = model_of(model)
    choice = choice_of(source, words)
    written = isinstance(source.event, Text)
    if length is not None and not isinstance(source.event, Series | Panel | Text):
        came = f"--length {length} for a model of {source.event!r}"
        raise ParameterError(came, "a model of sequences", "Leave it out")
    if given is not None and not written:
        raise ParameterError(f"--given for a model of {source.event!r}", "a model of text", "Leave it out")
    options: Any = {name: value for name, value in {"length": length, "given": given}.items() if value is not None}
    drawn = source.sampler(**choice) if choice else source
    target = f"{outputs.counted(n, 'draw')} from {drawn.sample_target()} of {type(source).__name__}, seed {seed}"
    if written:
        say(target)
        if output is None and n == 1 and hasattr(source, "stream"):
            _stream(source.stream(**options, **choice, seed=seed))
        else:
            _write_texts(drawn.sample(n, seed=seed, **options), output)
        return
    draws = source.event.check(source.sample(n, seed=seed, **options)).x
    say(target)
    if output is None:
        from probgen.evaluate.outputs import csv_lines

        for line in csv_lines(draws, source.event):
            show_text(line)
        return
    _write_samples(draws, source, output, frames)
    say(f"written to {output}")


def _stream(pieces: Any) -> None:
    """A text while it is drawn."""
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    show_text("")


def _write_texts(texts: list[str], output: Path | None) -> None:
    from probgen import frames

    if output is None:
        for text in texts:
            show_text(text)
        return
    if output.suffix.lower() != ".txt":
        raise StoreError(f"--output {output} for text", "a .txt file, a text a line")
    frames.write_whole(output, ["".join(" ".join(text.splitlines()) + "\n" for text in texts).encode()])
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
        Path | None, typer.Option(help="Folder for report, scores, models and pictures; a new one if not given.")
    ] = None,
    rows: Annotated[
        int,
        typer.Option(
            help="Held-out rows to score at most, a random subset, the same for all; fewer where a family is slow."
        ),
    ] = 500,
    test: Annotated[float, typer.Option(help="Share of rows held out.")] = 0.2,
    report: Annotated[bool, typer.Option(help="Whether to write report.html, one page with everything.")] = True,
    sequence: _Sequence = None,
    seed: _Seed = 0,
    overwrite: _Overwrite = False,
) -> None:
    """Fit every family that suits DATA, and compare them on held-out rows in one table.

    One single series is split in time: its last steps are held out, and each is scored given all steps before it.
    """
    from probgen import datasets
    from probgen.evaluate.run import compare_into, free_folder

    if rows < 1:
        raise ParameterError(f"--rows {rows}", "at least 1", "Leave it out for 500")
    seconds = seconds_of(budget)
    chosen = None if families is None else [family_name(name) for name in families.split(",")]
    place = free_folder(data, out, overwrite)
    loaded = datasets.load(data, sequence_of(sequence))
    with outputs.whole_folder(place) as folder:
        result, title = compare_into(
            folder, loaded, families=chosen, budget=seconds, rows=rows, test=test, seed=seed, say=say, report=report,
            command=shlex.join(["probgen", *sys.argv[1:]]),
        )  # fmt: skip
    outputs.show(result, title)
    show_text(f"{', '.join(sorted(path.name for path in place.iterdir()))} are in {place}")


@_command()
def compress(
    model: _Model,
    data: _Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")],
    overwrite: _Overwrite = False,
) -> None:
    """Write DATA in as few bits as a saved MODEL claims: the file's size proves the likelihood."""
    from probgen import frames
    from probgen.evaluate.codec import codec
    from probgen.events import Text

    outputs.refuse_output(output, (output.suffix.lower(),), overwrite)
    coder = codec(model_of(model))
    if isinstance(coder.model.event, Text) and Path(data).is_file():
        blob = coder.pack(Path(data).read_bytes())
    else:
        blob = coder.compress(_rows(data, coder.model, None))
    frames.write_whole(output, [blob])
    header, payload = coder.sizes(blob)
    show_text(f"{payload} bytes and a header of {header} bytes written to {output}")


@_command()
def decompress(
    model: _Model,
    packed: Annotated[Path, typer.Argument(help="What compress wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Text as it was; else .csv, .parquet or .npy.")],
    overwrite: _Overwrite = False,
) -> None:
    """Read back what compress wrote under the same MODEL."""
    from probgen import frames
    from probgen.evaluate.codec import codec
    from probgen.events import Text

    outputs.refuse_output(output, (output.suffix.lower(),), overwrite)
    coder = codec(model_of(model))
    if isinstance(coder.model.event, Text):
        frames.write_whole(output, [coder.unpack(packed.read_bytes())])
    else:
        event = coder.model.event
        _write_samples(event.check(coder.decompress(packed.read_bytes())).x, coder.model, output, frames)
    show_text(f"written to {output}")


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
