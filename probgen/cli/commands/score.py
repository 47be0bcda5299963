"""``probgen score``: rows, steps, files and folders of any size."""

from pathlib import Path
from typing import Annotated, Any

import typer

from probgen.cli import outputs
from probgen.cli.app import INTERRUPTED, PARTLY, Data, Model, Overwrite, Seed, Sequence, command
from probgen.cli.options import estimator_of, model_of
from probgen.cli.outputs import say, show_text
from probgen.cli.rows import refuse_absent, refuse_another_column, rows_of, say_ignored
from probgen.errors import ParameterError

__all__ = ["score"]

_LARGE = 1 << 24  # bytes of a file that is not read whole


@command()
def score(
    model: Model,
    data: Data,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="scores.parquet or .csv, a row a data row; for a folder of data a folder."),
    ] = None,
    by: Annotated[str | None, typer.Option(help="Estimator: iwae:samples=500, elbo:samples=64, enumerate.")] = None,
    steps: Annotated[
        bool, typer.Option("--steps", help="A row a step of each sequence: log p(step | all steps before it).")
    ] = False,
    sequence: Sequence = None,
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
    rows: Annotated[
        int | None, typer.Option(min=1, help="At most so many rows, drawn at random; all of them if left out.")
    ] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Score DATA under a saved MODEL: a summary, and with -o a table of every row. With --steps every step is printed.

    A model that was fitted to sequences of a table knows the column that names them. DATA may be a folder of Parquet
    files, each a partition, and may be larger than memory.
    """
    from probgen import frames
    from probgen.cli.pieces import scored
    from probgen.datasets import Dataset
    from probgen.events import Table

    if steps and (by is not None or rows is not None):
        other = f"--by {by}" if by is not None else f"--rows {rows}"
        raise ParameterError(f"{other} beside --steps", "one of them: an estimator scores whole rows", "Leave one out")
    estimator = None if by is None else estimator_of(by)
    asked = {"key": key, "engine": engine, "workers": workers, "scheduler": scheduler, "resume": resume or None}
    asked["skip_corrupt"] = skip_corrupt or None
    asked = {name: value for name, value in asked.items() if value is not None}
    if asked or Path(data).is_dir():
        _refuse_beside(asked, data, steps, sequence, rows)
        _score_table(model_of(model), data, output, by=estimator, seed=seed, overwrite=overwrite, **asked)
        return
    refuse_absent(model, data)
    outputs.refuse_output(output, (".parquet", ".csv"), overwrite)
    scorer = model_of(model)
    refuse_another_column(scorer.event, sequence)
    if not steps and sequence is None and rows is None and _is_large(data, scorer.event):
        _score_table(scorer, data, output, by=estimator, seed=seed, overwrite=overwrite)
        return
    found = Dataset(data, rows_of(data, scorer, sequence), scorer.event, "")
    answer = scorer.log_prob_steps(found.x, seed=seed) if steps else scored(scorer, found, rows, estimator, seed)
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
    if not (steps or rows or isinstance(scorer.event, Table)) and (
        each := outputs.per_step(answer, scorer.event.check(found.x).x)
    ):
        show_text(each)
    if output is not None:
        show_text(f"{outputs.counted(len(answer), 'row')} written to {output}")


def _refuse_beside(asked: dict[str, Any], data: str, steps: bool, sequence: str | None, rows: int | None) -> None:
    """Steps, and some rows, are scored in memory: none of the options of large tables goes with them."""
    option = "--steps" if steps else f"--sequence {sequence}" if sequence is not None else ""
    option = f"--rows {rows}" if rows is not None and not option else option
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
        raise SystemExit(INTERRUPTED) from None
    say_ignored(done.ignored)
    if done.before:
        rows = outputs.counted(sum(done.before.values()), "row")
        show_text(f"{rows} of {outputs.counted(len(done.before), 'file')} were scored before; the mean is of all rows")
    if done.summary.n:
        show_text(f"LogProb({outputs.shortened(str(done.summary))})")
    where = "" if output is None else f" written to {output}"
    if done.parts:
        show_text(f"{outputs.counted(done.rows, 'row')} of {outputs.counted(len(done.parts), 'file')}{where}")
    for name, why in done.skipped.items():
        say(f"probgen: skipped {name}: {why}")
    if done.skipped:
        raise SystemExit(PARTLY)
