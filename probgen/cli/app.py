"""What all commands share: the application, its words and exit codes, what becomes of a failure."""

import functools
import gc
import importlib
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from probgen.cli import outputs
from probgen.cli.options import uncollected
from probgen.cli.outputs import say
from probgen.errors import FitError, ProbgenError

__all__ = [
    "DONE", "FREE", "INTERRUPTED", "OURS", "PARTLY", "YOURS", "Data", "Model", "Overwrite", "Seed", "Sequence", "app",
    "command", "main",
]  # fmt: skip

app = typer.Typer(
    name="probgen",
    help="How probable is this data under any generative model, and what kind of number is that?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
FREE = {"allow_extra_args": True, "ignore_unknown_options": True}
Data = Annotated[
    str,
    typer.Argument(
        help="An embedded data set (digits, iris, ...), a csv, parquet, npz, idx or txt file, or a folder of "
        "captioned pictures."
    ),
]
Model = Annotated[
    Path,
    typer.Argument(help="Folder of a saved model, or a network's file: .bif, .bif.gz, .xmlbif, .net, .uai, .xdsl."),
]
Sequence = Annotated[
    str | None,
    typer.Option(help="Column of a table that says which sequence a row belongs to; - makes the whole one sequence."),
]
Seed = Annotated[int, typer.Option(min=0, help="Of every random draw.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]
DONE, OURS, YOURS, PARTLY, INTERRUPTED = 0, 1, 2, 3, 130


def command(**settings: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command whose failures become exit codes: never a traceback for a user's mistake."""

    def register(run: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(run)
        def guarded(*args: Any, **kwargs: Any) -> None:
            try:
                with uncollected():
                    importlib.import_module("probgen.store")  # torch and what every command needs
                with outputs.noted_warnings():
                    run(*args, **kwargs)
            except ProbgenError as problem:
                say(f"probgen: {problem}")
                raise SystemExit(OURS if isinstance(problem, FitError) else YOURS) from None
            except KeyboardInterrupt:
                say("probgen: interrupted; nothing was written")
                raise SystemExit(INTERRUPTED) from None
            except BrokenPipeError:
                outputs.mute()
                raise SystemExit(DONE) from None
            except OSError as problem:
                outputs.mute()
                say(f"probgen: the system refuses: {problem}. Wanted: paths that may be used, and room. Check them.")
                raise SystemExit(YOURS) from None
            except Exception:
                traceback.print_exc()
                say("probgen: this is a defect of probgen, not of your input. Please report it with the lines above.")
                raise SystemExit(OURS) from None

        return app.command(**settings)(guarded)

    return register


def main() -> None:
    """The entry point of the command ``probgen``."""
    gc.disable()  # until what the command needs is loaded
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # half-written folders are removed
    app()
