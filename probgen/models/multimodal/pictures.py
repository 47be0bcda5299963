"""What a multimodal model sees, says and imagines."""

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from probgen.errors import ParameterError
from probgen.events import Array, Parts, Ragged, Text
from probgen.features import channels_last
from probgen.models.multimodal import generation
from probgen.plots.captions import captioned

if TYPE_CHECKING:
    from probgen.models.multimodal.family import MultimodalVAE

__all__ = ["plot"]

_SHOWN = 10


def plot(model: "MultimodalVAE", x: Parts, path: str | PathLike, generator: torch.Generator) -> Path:
    """Records; images drawn from their captions; captions spoken of their images; joint draws."""
    image, text = generation.image_name(model), generation.text_name(model)
    if x[image] is None or x[text] is None:
        raise ParameterError("Records without images or texts", f"the parts {image!r} and {text!r}", "Complete rows")
    x = x.take(torch.arange(min(len(x), _SHOWN)))
    seen, said = Parts({**x, text: None}), Parts({**x, image: None})
    imagined = generation.records(model, 1, said, True, generator, "importance", 300)
    spoken = generation.captions(model, seen, text, "importance", 300, generator)
    joint = generation.records(model, len(x), None, True, generator, "importance", 300)
    event = cast(Text, model.parts_events[text])
    panels = {
        "data": (x[image], x[text]),
        "images drawn from those captions": (imagined[image], x[text]),
        "captions of the images": (x[image], spoken),
        "drawn together": (joint[image], joint[text]),
    }
    shown = {title: (_drawable(model, image, pixels), _said(event, texts)) for title, (pixels, texts) in panels.items()}
    captioned(shown, path)
    return Path(path)


def _said(event: Text, texts: Ragged) -> list[str]:
    return event.restore(texts)


def _drawable(model: "MultimodalVAE", name: str, x: Tensor) -> np.ndarray:
    """Images (n, h, w), or (n, h, w, 3) where coloured."""
    event = cast(Array, model.parts_events[name])
    if len(event.shape) != 3:
        return x.reshape(len(x), *(event.shape if len(event.shape) == 2 else (1, -1))).numpy()
    x = x if channels_last(event) else x.movedim(1, 3)
    return (x if x.shape[3] == 3 else x.mean(3)).numpy()
