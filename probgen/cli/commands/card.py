"""``probgen card``."""

import sys

from probgen.cli import outputs
from probgen.cli.app import Model, command
from probgen.cli.options import model_of
from probgen.cli.outputs import show_text

__all__ = ["card"]


@command()
def card(model: Model) -> None:
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
