"""``probgen compare``."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from probgen.cli import outputs
from probgen.cli.app import Data, Overwrite, Seed, Sequence, command
from probgen.cli.options import family_name, seconds_of, sequence_of
from probgen.cli.outputs import say, show_text
from probgen.errors import ParameterError

__all__ = ["compare"]


@command()
def compare(
    data: Data,
    families: Annotated[
        str | None, typer.Option(help="Names, separated by commas; all that suit if not given.")
    ] = None,
    budget: Annotated[str, typer.Option(help="Seconds of training for all families together: 60, 60s, 10m.")] = "60s",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", "--output", help="Folder for report, scores, models and pictures; a new one if not given."
        ),
    ] = None,
    rows: Annotated[
        int,
        typer.Option(
            help="Held-out rows to score at most, a random subset, the same for all; fewer where a family is slow."
        ),
    ] = 500,
    test: Annotated[float, typer.Option(help="Share of rows held out.")] = 0.2,
    complete_rows: Annotated[
        bool,
        typer.Option("--complete-rows", help="Leave out rows with missing cells, which some families can't do with."),
    ] = False,
    report: Annotated[bool, typer.Option(help="Whether to write report.html, one page with everything.")] = True,
    sequence: Sequence = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
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
            complete=complete_rows, command=shlex.join(["probgen", *sys.argv[1:]]),
        )  # fmt: skip
    outputs.show(result, title)
    show_text(f"{', '.join(sorted(path.name for path in place.iterdir()))} are in {place}")
