"""Multimodal variational autoencoders: one density over images, texts, vectors and tables observed together."""

import math
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from torch import Tensor, nn

from probgen.errors import ParameterError, nearest
from probgen.estimate import Ladder
from probgen.estimate.weights import at_least
from probgen.events import Array, Event, Parts, Record, Table, Text
from probgen.features import image_shape
from probgen.latent.priors import prior_for
from probgen.logprob import Fingerprint, LogProb
from probgen.model import FitReport, GenerativeModel, generator_of
from probgen.models.multimodal import checks, conditionals, generation, learning, pictures, program
from probgen.models.multimodal.guides import AGGREGATIONS, Experts, Guide, Joint, Normal
from probgen.models.multimodal.parts import Part, part_for
from probgen.nn import reset
from probgen.training import Player, Schedule, of_kept_state, train

__all__ = ["MultimodalVAE"]

_LOG_2PI = math.log(2 * math.pi)
_UNCHANGED = "the networks gained nothing on held-out rows: each cell has its own margin"
_SHOWN = 1000  # rows that pseudo-inputs begin from


class MultimodalVAE(GenerativeModel):
    """p(parts) = int p(z) prod p(part | z) dz over named parts, with a guide q(z | any subset); a lower bound.

    Parts are images, vectors, single values, tables and texts; cells are independent given z, tokens of a text follow
    one another given z. A part may be missing, in all rows or in some, in training and in scoring: it is integrated
    out. ``log_prob(x)`` climbs the ladder with the guide of what is there; ``log_prob(x, given=parts)`` is
    log p(x | given) by self-normalised importance sampling, an estimate, for the difference of two bounds is none;
    ``posterior_over(part, choices, given=...)`` is normalised over finitely many choices.
    ``sample(n, given={"caption": ...})`` draws whole records, ``caption``, ``imagine`` and ``vary`` are short for it.

    Arguments:
        event: Record of Arrays, Tables and Texts. For captions ``Text(Words.learn(texts))``: a token a word.
        latent_dim: Size of z.
        hidden: Widths of the decoders' hidden layers for numbers; the encoders have them reversed. () is linear.
        channels: Of the convolutions over images; each halves the image. () for none.
        text: Width of the recurrent networks that read and write texts.
        aggregation: How parts join in the guide. "joint": one network for everything, and one for any subset that is
            drawn towards it with the decoders held still, so that coherence costs no likelihood (Suzuki, Nakayama and
            Matsuo 2017; Senellart, Chadebec and Allassonniere 2023). "poe": experts multiply (Wu and Goodman 2018).
            "moe": their mixture (Shi et al. 2019); "mopoe": the mixture of all products (Sutter, Daunhawer and Vogt
            2021); both only train by the mixture, and score by the product.
        weights: Of each part's log-likelihood, in training only; None: by the parts' sizes (see ``part_weights``).
        prior: "vamp": the weighted mean of q(z | u_k) over learned pseudo-inputs u_k (Tomczak and Welling 2018);
            "normal"; "flow": a spline flow (needs the extra ``flow``).
        pseudo_inputs: How many, of "vamp".

    Raises:
        StructureError: parts that are sequences or records.
    """

    missing_cells: ClassVar[bool] = True

    def __init__(
        self,
        event: Event,
        latent_dim: int = 32,
        hidden: Sequence[int] = (256,),
        channels: Sequence[int] = (16, 32),
        text: int = 64,
        aggregation: str = "joint",
        weights: Mapping[str, float] | None = None,
        prior: str = "vamp",
        pseudo_inputs: int = 200,
    ) -> None:
        super().__init__(event)
        checks.sizes(latent_dim, hidden, channels, text)
        if aggregation not in AGGREGATIONS:
            raise ParameterError(
                f"aggregation={aggregation!r}", "a way to join", nearest(str(aggregation), AGGREGATIONS)
            )
        self.latent_dim, self.hidden, self.channels, self.text = latent_dim, tuple(hidden), tuple(channels), text
        self.aggregation, self.prior, self.pseudo_inputs = aggregation, prior, pseudo_inputs
        self.weights = checks.weights(weights, self.parts_events)
        parts = {n: part_for(e, latent_dim, self.hidden, self.channels, text) for n, e in self.parts_events.items()}
        self.parts = nn.ModuleDict({checks.key(name): part for name, part in parts.items()})
        widths = {name: part.width for name, part in parts.items()}
        wide = () if not self.hidden else (max(widths.values()),)
        self.guiding: Guide = (Joint if aggregation == "joint" else Experts)(widths, latent_dim, wide)
        self.latent = prior_for(prior, latent_dim, self.guiding.blind, sum(widths.values()), pseudo_inputs)

    @property
    def parts_events(self) -> Mapping[str, Event]:
        """The event of each part, by name."""
        return cast(Record, self.event).parts

    def named_parts(self) -> Iterator[tuple[str, Part]]:
        """The networks of each part, by name."""
        return ((name, cast(Part, self.parts[checks.key(name)])) for name in self.parts_events)

    @classmethod
    def suits(cls, event: Event) -> str | None:
        if not isinstance(event, Record):
            return f"it takes records of several parts, not {type(event).__name__}"
        for name, part in event.parts.items():
            if not isinstance(part, Array | Table | Text):
                return f"its parts are images, vectors, tables and text, and {name!r} is a {type(part).__name__}"
        return None

    @classmethod
    def for_event(cls, event: Event, **options: Any) -> Self:
        parts = event.parts.values() if isinstance(event, Record) else ()
        sizes = [math.prod(getattr(part, "shape", ())) for part in parts]
        images = [image for part in parts if (image := image_shape(part)) is not None and min(image[1:]) >= 16]
        defaults: dict[str, Any] = {"channels": (16, 32)} if images else {"channels": ()}
        if max(sizes, default=1) <= 16:
            defaults |= {"latent_dim": 4, "hidden": (64,), "text": 32, "pseudo_inputs": 50}
        elif not images:
            defaults |= {"latent_dim": 16, "hidden": (128, 128)}
        return cls(event, **{**defaults, **options})

    # The Pyro program

    def model(self, x: Parts | None = None, given: Any = None, n: int = 1) -> Parts:
        return program.model(self, x, n)

    def guide(self, x: Parts | None = None, given: Any = None, n: int = 1) -> None:
        if x is None:
            raise ParameterError("The guide q(z | x) without x", "the parts to condition on", "guide(x)")
        program.guide(self, x)

    @property
    def dtype(self) -> torch.dtype:
        """Of the networks."""
        return next(self.parts.parameters()).dtype

    @property
    def draw_cost(self) -> int:
        """Numbers that one draw of one row goes through."""
        return max(self.latent_dim, sum(part.cost for _, part in self.named_parts()))

    # The same by hand

    def _packed(self, x: Parts) -> dict[str, Tensor]:
        return {name: part.pack(x[name], len(x)) for name, part in self.named_parts()}

    def _features(self, packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: part.features(packed[name]) for name, part in self.named_parts()}

    def _seen(self, packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: part.seen(packed[name]) for name, part in self.named_parts()}

    def _posterior(self, x: Parts) -> Normal:
        """Mean and standard deviation of q(z | x), each (n, latent_dim)."""
        packed = self._packed(x)
        return self.guiding(self._features(packed), self._seen(packed))

    def _propose(self, x: Parts, given: Any, noise: Tensor) -> tuple[Tensor, Tensor]:
        if given is not None:
            raise ParameterError(
                "log p(x | given) by draws of one guide",
                "by=None, or by=probgen.models.multimodal.SelfNormalised(...)",
                "Leave by= out: a ratio of two bounds is no bound",
            )
        loc, scale = self._posterior(x)
        noise = noise.to(loc.dtype)
        return loc + scale * noise, -0.5 * (noise.square() + _LOG_2PI).sum(-1) - scale.log().sum(-1)

    def _log_joint(self, x: Parts, z: Tensor, given: Any) -> Tensor:
        total = self.latent.log_prob(z)
        for name, part in self.named_parts():
            if x[name] is not None:
                total = total + part.nats(z, part.pack(x[name], len(x)))
        return total

    def _sample_joint(self, n: int, given: Any, *, generator: torch.Generator) -> tuple[Parts, Tensor]:
        z = self.latent.draw(n, generator)
        return generation.parts_of(self, z, generator), z

    def _log_prob(self, x: Parts, given: Parts | None, *, generator: torch.Generator) -> LogProb:
        if given is not None:
            return conditionals.SelfNormalised()(self, x, given, generator=generator)
        by = Ladder() if self._variable(x, None) is None else conditionals.Defensive()
        return by(self, x, None, generator=generator)

    def _variable(self, x: Parts, given: Parts | None) -> str | None:
        asked = [name for name in x if x[name] is not None]
        if given is None:
            return None if len(asked) == len(x.seen) else checks.joined(asked)
        known = [name for name in given if given[name] is not None]
        return f"{checks.joined(asked)}|{checks.joined(known)}"

    def _check_given(self, given: Any, data: Any) -> Parts | None:
        """``given`` is observed parts: a dict of them."""
        return None if given is None else checks.conditions(self.event, given, data)

    def _rows_given(self, given: Any, n: int) -> Fingerprint | None:
        if given is None:
            return None
        about = self.event.check(given).about
        return about if len(about) == n else about[np.zeros(n, dtype=int)]

    # Training

    def _fit(
        self,
        x: Parts,
        given: Any,
        *,
        generator: torch.Generator,
        budget: float = 60.0,
        steps: int | None = None,
        batch_size: int = 64,
        learning_rate: float = 2e-3,
        beta: float = 1.0,
        warming: float = 0.03,
        matching: float = 1.0,
        validation: float | None = None,
        weight_decay: float = 0.0,
        patience: int = 12,
        ema: float = 0.0,
        checkpoint: str | None = None,
        every: int = 500,
        resume: bool = False,
        progress: bool | None = None,
    ) -> FitReport:
        """Stochastic variational inference, reparameterised. ``budget`` in seconds, unless ``steps`` is given.

        Arguments:
            beta: Weight of the divergence of the guide from the prior; 1 trains the bound itself (Higgins et al. 2017).
            warming: Share of the steps in which that weight rises from 0 (Bowman et al. 2016).
            matching: Of "joint": weight of what draws the guides of subsets towards that of everything; 0 leaves them
                untaught.
            validation: Share of rows held out to choose the best state; None: a twentieth, 1000 rows at most.
        """
        if given is not None:
            raise ParameterError("given= for fit", "all parts in x", "fit({'image': ..., 'caption': ...})")
        plan = Schedule(
            steps=steps, budget=budget, batch_size=batch_size, learning_rate=learning_rate, weight_decay=weight_decay,
            validation=_held(validation, len(x)), patience=patience,
            grace=min(warming, 0.999), ema=ema, checkpoint=checkpoint, every=every, resume=resume,
        )  # fmt: skip
        packed = self._packed(x)
        if not resume:
            reset(self, generator)
            self._measure(packed, generator)
        columns = {name: rows.shape[1] for name, rows in packed.items()}
        loss = learning.NegativeBound(self, self.part_weights(), columns, beta, warming, matching)
        exact = torch.float32 if all(map(checks.whole, self.parts_events.values())) else torch.float64
        data = torch.cat([rows.to(exact) for rows in packed.values()], 1)
        players = [Player(loss, list(self.parameters()))]
        report = train(self, players, data, plan, generator=generator, progress=progress)
        return of_kept_state(report, _UNCHANGED) if plan.validation else report

    @torch.no_grad()
    def _measure(self, packed: Mapping[str, Tensor], generator: torch.Generator) -> None:
        """Scales of the data, and pseudo-inputs like it."""
        for name, part in self.named_parts():
            there = part.seen(packed[name])
            if not bool(there.any()):
                raise ParameterError(f"No row has the part {name!r}", "some rows of each part", "Leave it out of event")
            part.measure(packed[name][there])
        some = torch.randperm(len(next(iter(packed.values()))), generator=generator)[:_SHOWN]
        features = self._features({name: rows[some] for name, rows in packed.items()})
        self.latent.start(torch.cat(list(features.values()), 1), generator)

    def part_weights(self) -> dict[str, float]:
        """Of each part's log-likelihood in training: those given, or the largest part's size over its own, 10 at most.

        A caption of five tokens beside 784 pixels gets 10: unweighted, what it says would hardly shape z.
        """
        if self.weights is not None:
            return self.weights
        sizes = {name: part.size for name, part in self.named_parts()}
        return {name: min(10.0, max(sizes.values()) / size) for name, size in sizes.items()}

    # Drawing

    def sample_target(self, *, posterior: str = "importance", draws: int = 300, given: Any = None) -> str:
        """ "p", or how z is drawn where parts are given."""
        if given is None:
            return "p"
        return "p(. | given), z from the guide as it is" if posterior == "guide" else (
            f"p(. | given), z resampled from {draws} weighted draws"
        )  # fmt: skip

    def _sample(
        self, n: int, given: Parts | None, *, generator: torch.Generator, posterior: str = "importance",
        draws: int = 300,
    ) -> Parts:  # fmt: skip
        """Whole records; the given parts are repeated, the others drawn from p(others | given).

        n draws for one row of ``given``, for m rows (m, n, ...), texts as lists of lists.

        Arguments:
            posterior: How z given parts is drawn. "importance": resampled from ``draws`` weighted ones of the guide and
                the prior, which tends to p(z | given) as they grow; "guide": from the guide as it is, which is faster.
        """
        return generation.records(self, n, given, True, generator, posterior, draws)

    @torch.no_grad()
    def vary(self, x: Mapping[str, Any], n: int = 1, *, seed: int | None = None, **options: Any) -> dict[str, Any]:
        """New versions of records: z ~ p(z | x), then every part anew; n of each row, (n, ...) or (m, n, ...).

        Arguments:
            x: Any parts.
            **options: As of ``sample``.
        """
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ParameterError(f"n={n!r}", "a whole number of draws, at least 1")
        given, chosen = self._conditions(x), {"posterior": "importance", "draws": 300, **options}
        self._check_options(self._sample, options, "vary")
        found = generation.records(self, n, given, False, generator_of(seed), **chosen)
        return self.event.restore(found, self.form)

    @torch.no_grad()
    def caption(
        self, images: Any, *, seed: int | None = 0, posterior: str = "importance", draws: int = 300
    ) -> list[str]:
        """One text for each image: the likeliest under p(text | image) of some that draws of z speak.

        ``sample(given=...)`` draws texts instead.

        Arguments:
            images: Data of the image part; or a dict of parts.
            posterior, draws: As of ``sample``; by the "guide" it is faster, and judges worse where the guide is rough.
        """
        name = generation.text_name(self)
        given = self._conditions(images if isinstance(images, Mapping) else {generation.image_name(self): images})
        checks.refuse_twice(given, [name])
        found = generation.captions(self, given, name, posterior, draws, generator_of(seed))
        return cast(Text, self.parts_events[name]).restore(found)

    @torch.no_grad()
    def imagine(self, captions: Any, n: int = 1, *, seed: int | None = None, **options: Any) -> Any:
        """n images for each text: (m, n, ...), or (m, ...) where n is 1; of one string (n, ...).

        Arguments:
            captions: Data of the text part; or a dict of parts.
            **options: As of ``sample``.
        """
        given = captions if isinstance(captions, Mapping) else {generation.text_name(self): captions}
        name, m = generation.image_name(self), len(self._conditions(given))
        found = self.sample(n, given=given, seed=seed, **options)[name]
        return found if m == 1 or n > 1 or not hasattr(found, "shape") else found.reshape(m, *found.shape[2:])

    @torch.no_grad()
    def traverse(self, x: Mapping[str, Any], dims: Sequence[int], steps: int = 8, span: float = 2.5) -> dict[str, Any]:
        """Means of all parts along latents, from -span to span, the others at one record's mean: (dims, steps, ...).

        Arguments:
            x: Parts of one row.
        """
        return self.event.restore(generation.traversal(self, self._conditions(x), dims, steps, span), self.form)

    def _conditions(self, x: Any) -> Parts:
        self._check_fitted()
        found = self._check_given(x, None)
        if found is None:
            raise ParameterError("Nothing given", "parts by name", "x={'caption': [...]}")
        return found

    # Questions

    @torch.no_grad()
    def posterior_over(
        self, part: str, choices: Any, *, given: Any = None, samples: int = 600, enough: int = 50,
        seed: int | None = None,
    ) -> "conditionals.Choice":  # fmt: skip
        """p(part = choice | given), normalised over the choices, of each given row; with standard errors.

        Weighted draws of z, from the guide and the prior; where they are worth fewer than ``enough``, from a guide at
        the posterior's mode, then ends of annealed chains. ``.grouped(answers)`` sums choices by what they answer.

        Arguments:
            choices: Values of the part, such as all captions.
            given: Parts by name; None: p(part = choice) against each other.
            samples: Draws a row.

        Raises:
            ParameterError: an unknown part, or one that is given.
        """
        self._check_fitted()
        if part not in self.parts_events:
            raise ParameterError(f"There is no part {part!r}", "", nearest(str(part), self.parts_events))
        values = list(choices) if isinstance(choices, list | tuple) else choices
        conditions = self._check_given(given, None)
        checks.refuse_twice(conditions or {}, [part])
        at_least("samples", samples, 4)
        named = cast(Parts, self.event.check({part: choices}).x)
        found = conditionals.choose(self, part, named, conditions, samples, enough, generator_of(seed))
        return conditionals.Choice(list(values), *(column.numpy() for column in found))

    @torch.no_grad()
    def plot(self, x: Mapping[str, Any], path: str | PathLike, *, seed: int | None = 0) -> Path:
        """Records, images from their captions, captions of their images, and joint draws, as one PNG."""
        return pictures.plot(self, self._conditions(x), path, generator_of(seed))


def _held(validation: float | None, rows: int) -> float:
    """The share of rows that is held out."""
    share = min(0.05, 1000 / rows) if validation is None else validation
    return share if rows >= 50 else 0.0
