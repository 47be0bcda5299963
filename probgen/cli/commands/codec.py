"""``probgen compress`` and ``probgen decompress``."""

from pathlib import Path
from typing import Annotated

import typer

from probgen.cli import outputs
from probgen.cli.app import Data, Model, Overwrite, command
from probgen.cli.draws import write_samples
from probgen.cli.options import model_of
from probgen.cli.outputs import show_text
from probgen.cli.rows import refuse_absent, rows_of

__all__ = ["compress", "decompress"]


@command()
def compress(
    model: Model,
    data: Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")],
    overwrite: Overwrite = False,
) -> None:
    """Write DATA in as few bits as a saved MODEL claims: the file's size proves the likelihood."""
    from probgen import frames
    from probgen.evaluate.codec import codec
    from probgen.events import Text

    refuse_absent(model, data)
    outputs.refuse_output(output, (output.suffix.lower(),), overwrite)
    coder = codec(model_of(model))
    if isinstance(coder.model.event, Text) and Path(data).is_file():
        blob = coder.pack(Path(data).read_bytes())
    else:
        blob = coder.compress(rows_of(data, coder.model, None))
    frames.write_whole(output, [blob])
    header, payload = coder.sizes(blob)
    show_text(f"{payload} bytes and a header of {header} bytes written to {output}")


@command()
def decompress(
    model: Model,
    packed: Annotated[Path, typer.Argument(help="What compress wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Text as it was; else .csv, .parquet or .npy.")],
    overwrite: Overwrite = False,
) -> None:
    """Read back what compress wrote under the same MODEL."""
    from probgen import frames
    from probgen.evaluate.codec import codec
    from probgen.events import Text

    content = packed.read_bytes()
    outputs.refuse_output(output, (output.suffix.lower(),), overwrite)
    coder = codec(model_of(model))
    if isinstance(coder.model.event, Text):
        frames.write_whole(output, [coder.unpack(content)])
    else:
        event = coder.model.event
        write_samples(event.check(coder.decompress(content)).x, coder.model, output, frames)
    show_text(f"written to {output}")
