"""``probgen fit``."""

from pathlib import Path
from typing import Annotated

import typer

from probgen.cli import outputs
from probgen.cli.app import FREE, INTERRUPTED, Data, Overwrite, Seed, Sequence, command
from probgen.cli.options import family_of, fitted, options_of, sequence_of
from probgen.cli.outputs import say, show_text

__all__ = ["fit"]


@command(context_settings=FREE)
def fit(
    context: typer.Context,
    family: Annotated[
        str,
        typer.Argument(
            help="For rows: mixture, bayesnet, vae, flow, diffusion, gan, kerneldensity, gaussiancopula, independent. "
            "For sequences: hmm, statespace, independent. For text: language, textdiffusion, ngram (--tokens 2048: in "
            "tokens). For images with captions: multimodal, contrastive."
        ),
    ],
    data: Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the model.")],
    sequence: Sequence = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
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
        raise SystemExit(INTERRUPTED)
    show_text(f"saved in {output}; next: probgen score {output} {data}")
