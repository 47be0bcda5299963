"""``probgen sample``: rows, sequences and texts."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from probgen.cli import outputs
from probgen.cli.app import FREE, Model, Overwrite, Seed, command
from probgen.cli.draws import refuse_folder, text_lines, write_records, write_samples
from probgen.cli.options import choice_of, draws_text, given_of, model_of, options_of
from probgen.cli.outputs import say, show_text
from probgen.errors import ParameterError, StoreError

__all__ = ["sample"]


@command(context_settings=FREE)
def sample(
    context: typer.Context,
    model: Model,
    n: Annotated[int, typer.Option("-n", help="Draws.")] = 1,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help=".csv, .parquet, .npy, .png or .txt; of records a folder; else standard output."
        ),
    ] = None,
    given: Annotated[
        list[str] | None,
        typer.Option(help='The beginning of the text to draw; of records PART=TEXT: caption="a boot".'),
    ] = None,
    length: Annotated[int | None, typer.Option(min=1, help="Steps of a sequence; most symbols of a text.")] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Draw from a saved MODEL; what the draws come from is said beside them.

    A language model takes --temperature, --top-k, --top-p, --min-p and --repetition-penalty, too; one text is shown
    while it is drawn.
    """
    from probgen import frames
    from probgen.events import Panel, Record, Series, Text

    if output is not None and output.suffix:
        asks_text = output.suffix.lower() == ".txt"
        kinds = (".txt",) if asks_text and draws_text(model) else (".csv", ".parquet", ".npy", ".png")
        outputs.refuse_output(output, kinds, overwrite)
    words = options_of(context.args)
    source = model_of(model)
    choice = choice_of(source, words)
    written = isinstance(source.event, Text)
    if length is not None and not isinstance(source.event, Series | Panel | Text):
        came = f"--length {length} for a model of {source.event!r}"
        raise ParameterError(came, "a model of sequences", "Leave it out")
    known = given_of(given, source.event) if given else None
    options: Any = {name: value for name, value in {"length": length, "given": known}.items() if value is not None}
    if isinstance(source.event, Record):
        _sample_records(source, n, options, output, seed, overwrite)
        return
    outputs.refuse_output(output, (".csv", ".parquet", ".npy", ".png", *(".txt",) * written), overwrite)
    drawn = source.sampler(**choice) if choice else source
    named = {"length": length} if length is not None else {}
    target = f"{outputs.counted(n, 'draw')} from {drawn.sample_target(**named)} of {type(source).__name__}, seed {seed}"
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
    write_samples(draws, source, output, frames)
    say(f"written to {output}")


def _sample_records(source: Any, n: int, options: Any, output: Path | None, seed: int, overwrite: bool) -> None:
    """Records: their texts on the terminal, everything in a folder."""
    from probgen import frames

    refuse_folder(output, overwrite)
    asked = {"given": options["given"]} if "given" in options else {}
    target = f"{source.sample_target(**asked)} of {type(source).__name__}"
    say(f"{outputs.counted(n, 'draw')} from {target}, seed {seed}")
    draws = source.sample(n, seed=seed, **options)
    for line in text_lines(draws, source.event):
        show_text(line)
    if output is None:
        say("pictures and numbers are written with -o FOLDER")
        return
    with outputs.whole_folder(output) as folder:
        write_records(draws, source.event, target, folder, frames)
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
