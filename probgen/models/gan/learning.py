"""The two players. Each is a Module whose forward is its loss, so that it can be distributed."""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from probgen.models.gan.conditions import Drawn, Rows
from probgen.models.gan.losses import discriminator_loss, generator_loss, interpolated_penalty, slope_penalty
from probgen.models.gan.spectral import Spectral

if TYPE_CHECKING:
    from probgen.models.gan.family import GAN


class _Batch(NamedTuple):
    """Real rows as the discriminator sees them, (n, width); what both networks know of them, (n, extra) or None; which
    cells are seen, (n, cells) or None; the conditions they fulfil."""

    real: Tensor
    extra: Tensor | None
    seen: Tensor | None
    drawn: Drawn | None


class _Pair(nn.Module):
    """Real rows and as many generated ones.

    With conditions the real rows are not those of the batch but drawn to fulfil them. Where cells may be missing, a
    generated row loses those that a real row of the same conditions lacks (Bora, Price and Dimakis 2018): samples are
    whole rows, right where cells are missing completely at random.

    Arguments:
        gan: The model.
        rows: Training rows by condition, or None.
    """

    def __init__(self, gan: "GAN", rows: Rows | None = None) -> None:
        super().__init__()
        self.gan, self.rows = gan, rows

    def batch(self, x: Tensor, generator: torch.Generator) -> _Batch:
        gan, drawn = self.gan, None
        if self.rows is not None and gan.conditions is not None:
            drawn = gan.conditions.draw(len(x), generator, log=True)
            x = self.rows.draw(drawn, generator)
        cells = x[:, : gan.cells.count]
        given = x[:, gan.cells.count :] if gan.covariates is not None else None
        real = gan.cells.encode(cells, generator).to(gan.dtype)
        seen = gan.cells.seen(cells).to(gan.dtype) if gan.cells.gaps else None
        extra = gan._known(given, drawn)
        return _Batch(real if seen is None else torch.cat([real, seen], 1), extra, seen, drawn)

    def raw(self, batch: _Batch, generator: torch.Generator) -> Tensor:
        """The generator's output for fresh latents."""
        gan = self.gan
        z = torch.randn(len(batch.real), gan.latent_dim, generator=generator, dtype=gan.dtype)
        return gan.generator(z, batch.extra)

    def fake(self, raw: Tensor, batch: _Batch, generator: torch.Generator) -> Tensor:
        """It as the discriminator sees it."""
        cells = self.gan.cells
        u = torch.rand(len(raw), cells.choices, generator=generator, dtype=raw.dtype) if cells.choices else None
        rows = cells.choose(raw, u)
        return rows if batch.seen is None else torch.cat([cells.masked(rows, batch.seen), batch.seen], 1)


class _Discriminate(_Pair):
    """The discriminator's loss and penalty.

    Arguments:
        lazy: In training the penalty is paid in one step of so many, chosen at random, and weighs that much more
            (Karras et al. 2020, "lazy regularisation"): it takes slopes of slopes, half of a step's work and more.
    """

    def __init__(self, gan: "GAN", rows: Rows | None = None, lazy: int = 1) -> None:
        super().__init__(gan, rows)
        self.lazy = lazy

    def forward(self, x: Tensor, generator: torch.Generator, share: float) -> Tensor:
        lazy = self.lazy if torch.is_grad_enabled() else 1
        due = lazy == 1 or float(torch.rand((), generator=generator)) * lazy < 1
        with torch.enable_grad():  # the penalty is made of slopes, also where it is only evaluated
            return self._loss(x, generator, self.gan.penalty * lazy if due else 0.0)

    def _loss(self, x: Tensor, generator: torch.Generator, penalty: float) -> Tensor:
        gan, batch = self.gan, self.batch(x, generator)
        if isinstance(gan.discriminator, Spectral):
            gan.discriminator.advance()
        with torch.no_grad():
            fake = self.fake(self.raw(batch, generator), batch, generator)
        real, fake = batch.real.detach().requires_grad_(), fake.requires_grad_()
        on_real, on_fake = self._scores(real, fake, batch)
        loss = discriminator_loss(gan.loss, on_real, on_fake)
        if not penalty:
            return loss
        if gan.loss == "wasserstein":
            between = torch.rand(len(real), 1, generator=generator, dtype=real.dtype)
            return loss + penalty * interpolated_penalty(
                lambda rows: gan.discriminator(rows, batch.extra), real, fake, between
            )
        if gan.loss == "relativistic":
            return loss + penalty * slope_penalty(torch.cat([on_real, on_fake]), real, fake)
        return loss + penalty * slope_penalty(on_real, real)

    def _scores(self, real: Tensor, fake: Tensor, batch: _Batch) -> tuple[Tensor, Tensor]:
        """Both halves in one pass."""
        extra = None if batch.extra is None else torch.cat([batch.extra, batch.extra])
        on_real, on_fake = self.gan.discriminator(torch.cat([real, fake]), extra).chunk(2)
        return on_real, on_fake


class _Generate(_Pair):
    def forward(self, x: Tensor, generator: torch.Generator, share: float) -> Tensor:
        gan, batch = self.gan, self.batch(x, generator)
        raw = self.raw(batch, generator)
        on_fake = gan.discriminator(self.fake(raw, batch, generator), batch.extra)
        on_real = on_fake
        if gan.loss == "relativistic":
            with torch.no_grad():
                on_real = gan.discriminator(batch.real, batch.extra)
        loss = generator_loss(gan.loss, on_real, on_fake)
        if batch.drawn is None:
            return loss
        return loss - gan.cells.log_share(raw, *batch.drawn).mean()  # so that conditions are heeded
