"""What a VAE looks like."""

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from probgen import plots
from probgen.events import Table
from probgen.features import image_shape
from probgen.models.vae.diagnostics import diagnose

if TYPE_CHECKING:
    from probgen.models.vae.family import VAE

_MOST = 2000  # rows drawn


@torch.no_grad()
def plot(vae: "VAE", x: Tensor, given: Tensor | None, path: str | PathLike, generator: torch.Generator) -> Path:
    """Data, reconstructions and samples, with the covariates of the data; codes, latents and training below."""
    x, given = x[:_MOST], None if given is None else given[:_MOST]
    loc = vae._posterior(x, given)[0]
    z = vae.latent.draw(len(x), generator)
    again = vae._rows(vae.cells.mean(vae._decoded(loc, given)))
    drawn = vae._rows(vae.cells.draw(vae._decoded(z, given), generator))
    found = diagnose(vae, x, given, rows=0, generator=generator)
    plots.codes(
        {"data": _drawable(vae, x), "reconstructions": _drawable(vae, again), "samples": _drawable(vae, drawn)},
        loc.to(torch.float64).numpy(),
        found.divergence,
        found.active,
        vae.report.objective if vae.report else (),
        path,
        list(vae.event.columns) if isinstance(vae.event, Table) else None,
    )
    return Path(path)


def _drawable(vae: "VAE", x: Tensor) -> np.ndarray:
    """Images with their channels last, and none where there is one; other rows as they are."""
    image = image_shape(vae.event)
    if image is None or min(image[1:]) < 3:
        return x.reshape(len(x), -1).numpy()
    if x.ndim == 4 and x.shape[3] > 4:
        x = x.movedim(1, 3)
    grey = x.ndim == 3 or x.shape[3] != 3
    return (x if x.ndim == 3 else x.mean(3) if grey else x).numpy()
