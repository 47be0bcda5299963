"""What a Pyro program is made of: its rows, and which latents belong to a row and which to all. Found by tracing."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

from probgen.errors import StructureError, nearest
from probgen.events import take
from probgen.svi.program import Program, Site, is_latent, sites_of

__all__ = ["LatentSite", "Structure", "check_guide", "look", "row_dim"]

_EVIDENCE = "Put the rows into one pyro.plate of len(x), or ask estimate.evidence(model, guide, data) for one number"


@dataclass(frozen=True)
class LatentSite:
    """A latent of the model.

    Arguments:
        local: Whether every row has its own.
        shape: Of one row's value (batch dims inside the row, then the event); of the whole value where it is global.
        dim: Of the rows in the value's shape, counted from the right; 0 where it is global.
        support: The constraint; its bijection from the reals gives the coordinates that are searched.
        finite: Discrete, and summed out.
    """

    name: str
    local: bool
    shape: tuple[int, ...]
    dim: int
    support: constraints.Constraint
    finite: bool

    @property
    def cells(self) -> int:
        """Unconstrained numbers a row."""
        return int(torch.Size(biject_to(self.support).inverse_shape(torch.Size(self.shape))).numel())


@dataclass(frozen=True)
class Structure:
    """How a program's sites lie to its rows.

    Arguments:
        plate: The plate of the rows.
        nesting: Dims that plates take up, at most.
        latents: By name, in the model's order.
        observed: Names of the observed sites.
        amortised: Whether the guide's distributions of local latents follow from the row, so that it serves new rows.
        plain: Whether all draws of the guide are reparameterised, and it leaves the finite latents alone.
        scaled: Sites whose log-density the program multiplies (poutine.scale); no likelihood then.
    """

    plate: str
    nesting: int
    latents: Mapping[str, LatentSite]
    observed: tuple[str, ...]
    amortised: bool = True
    plain: bool = True
    scaled: tuple[str, ...] = ()

    @property
    def globals(self) -> tuple[str, ...]:
        return tuple(name for name, latent in self.latents.items() if not latent.local)

    @property
    def locals(self) -> tuple[str, ...]:
        """Continuous latents that every row has its own of."""
        return tuple(name for name, latent in self.latents.items() if latent.local and not latent.finite)

    @property
    def finite(self) -> tuple[str, ...]:
        return tuple(name for name, latent in self.latents.items() if latent.finite)


def look(
    program: Program, x: Tensor, given: Tensor | None, plate: str | None = None, fixed: Iterable[str] = ()
) -> Structure:
    """Traces the model on a few rows and on fewer, and says what it is made of. Nothing is registered or changed.

    Arguments:
        plate: The name of the rows' plate, where several could be it.
        fixed: Global latents that the program holds at given values (their ``infer["fixed"]`` is set).

    Raises:
        StructureError: no plate holds the rows, or the program subsamples, loops over a plate, scales its rows' sites,
            observes nothing, or has discrete latents that can't be summed; the site or plate is named.
    """
    few = torch.arange(min(len(x), 6))
    fewer = few[: max(1, len(few) // 2)] if len(x) > 1 else torch.tensor([0, 0])
    sizes = []
    with program.running(torch.Generator().manual_seed(0), fresh=True):
        for rows in (few, fewer):
            trace = program.trace_model(take(x, rows), None if given is None else take(given, rows), {})
            sizes.append(_plates(sites_of(trace)))
            sites = sites_of(trace)
    name = _rows(sizes, sites, (len(few), len(fewer)), plate)
    _check_fixed(fixed, sites, name)
    latents = {n: _latent(n, site, name) for n, site in sites.items() if is_latent(site)}
    nesting = max(-frame.dim for site in sites.values() for frame in site["cond_indep_stack"])
    deep = max(len(site["fn"].batch_shape) for site in sites.values())
    observed = tuple(n for n, site in sites.items() if _is_data(site))
    scaled = tuple(n for n, site in sites.items() if bool(torch.as_tensor(site["scale"] != 1).any()))
    return Structure(name, max(nesting, deep), latents, observed, scaled=scaled)


def _plates(sites: Mapping[str, Site]) -> dict[str, int]:
    """Size of each plate around any site."""
    found = {}
    for name, site in sites.items():
        for frame in site["cond_indep_stack"]:
            if frame.dim is None:
                raise StructureError(
                    f"The site {name!r} stands in a loop over the plate {frame.name!r}",
                    "a vectorised plate",
                    f"Write `with pyro.plate({frame.name!r}, ...)`",
                )
            if frame.full_size not in (None, frame.size):
                raise StructureError(
                    f"The plate {frame.name!r} takes {frame.size} of {frame.full_size} rows by itself",
                    "a plate of all the rows that the program is called with",
                    f"Write pyro.plate({frame.name!r}, len(x)): fit(batch_size=...) draws the batches and scales them",
                )
            found[frame.name] = frame.size
    return found


def _rows(sizes: list[dict[str, int]], sites: Mapping[str, Site], n: tuple[int, int], plate: str | None) -> str:
    """The name of the plate that has as many rows as the data."""
    seen = [site for site in sites.values() if _is_data(site)]
    if not seen:
        raise StructureError("The program observes nothing", "a site with obs= when it is called with data", "Check it")
    if plate is not None and plate not in sizes[0]:
        raise StructureError(
            f"plate={plate!r}, which the program has not", "one of its plates", nearest(plate, sizes[0])
        )
    follows = [name for name in sizes[0] if (sizes[0][name], sizes[1].get(name)) == n]
    around = [name for name in follows if all(_has(site, name) for site in seen)]
    if plate is not None and plate not in around:
        came = f"The plate {plate!r} has {sizes[0][plate]} and {sizes[1].get(plate)} members for {n[0]} and {n[1]} rows"
        if plate in follows:
            out = next(name for name, site in sites.items() if _is_data(site) and not _has(site, plate))
            came = f"The observed site {out!r} stands outside the plate {plate!r}"
        raise StructureError(came, "the plate of the rows, around all observed sites", _EVIDENCE)
    if not around:
        shown = ", ".join(f"{name!r} of {size}" for name, size in sizes[0].items()) or "none"
        raise StructureError(
            f"No plate around all observed sites has one member a row (of {n[0]} rows; plates: {shown})",
            "independent rows",
            _EVIDENCE,
        )
    if len(around) > 1 and plate is None:
        raise StructureError(f"The plates {around} all have one member a row", "one of them", f"plate={around[0]!r}")
    return plate or around[0]


def _is_data(site: Site) -> bool:
    return site["is_observed"] and not site["infer"].get("fixed")


def _check_fixed(fixed: Iterable[str], sites: Mapping[str, Site], plate: str) -> None:
    for name in fixed:
        if name not in sites or _is_data(sites[name]):
            known = [n for n, site in sites.items() if not _is_data(site)]
            raise StructureError(f"No latent {name!r} to hold fixed", "a latent of the program", nearest(name, known))
        if _has(sites[name], plate):
            raise StructureError(f"The latent {name!r} to hold fixed is each row's own", "a latent that all rows share")


def _has(site: Site, plate: str) -> bool:
    return any(frame.name == plate for frame in site["cond_indep_stack"])


def row_dim(site: Site, plate: str) -> int | None:
    """The dim of a site's batch shape along which the rows lie; None where it stands outside their plate."""
    return next((frame.dim for frame in site["cond_indep_stack"] if frame.name == plate), None)


def _latent(name: str, site: Site, plate: str) -> LatentSite:
    fn, dim = site["fn"], row_dim(site, plate)
    support = fn.support
    finite = bool(support.is_discrete)
    if finite and not fn.has_enumerate_support:
        raise StructureError(
            f"The latent {name!r} is {type(fn).__name__}: discrete, without a finite list of values",
            "continuous latents, and discrete ones with finitely many values",
            "Truncate it to a Categorical",
        )
    if finite and dim is None:
        raise StructureError(
            f"The discrete latent {name!r} stands outside the plate {plate!r}: the rows are not independent given it",
            "discrete latents that every row has its own of",
            "estimate.evidence(model, guide, data) gives one number for all rows",
        )
    shape = list(site["value"].shape)
    place = 0 if dim is None else dim - len(fn.event_shape)
    if place:
        shape.pop(len(shape) + place)
    return LatentSite(name, dim is not None, tuple(shape), place, support, finite)


def check_guide(
    program: Program, structure: Structure, x: Tensor, given: Tensor | None, *, generator: torch.Generator
) -> Structure:
    """Holds the guide against the model, site by site; tells whether it serves new rows.

    A guide that says it is ``automatic`` (Pyro's autoguides) is set up here, on all rows, with draws of the generator.

    Raises:
        StructureError: a latent without a guide site, a guide site that the model lacks, another plate, shape or
            support; the site is named.
    """
    if program.pair[1] is None:
        return structure
    automatic = bool(getattr(program.pair[1], "automatic", False))
    rows = [torch.arange(len(x))] if automatic else [torch.arange(min(len(x), 6)), torch.arange(min(len(x), 3))]
    shapes, sites = [], {}
    for chosen in reversed(rows):
        part = take(x, chosen), None if given is None else take(given, chosen)
        with program.running(generator, fresh=not automatic):
            trace: Any = program.trace_guide(*part)
            sites = {n: s for n, s in sites_of(trace).items() if not s["is_observed"]}
            model = sites_of(program.trace_model(*part, {}))
        shapes.append({n: param["value"].shape for n, param in trace.nodes.items() if param["type"] == "param"})
    latent = {n: site for n, site in sites.items() if is_latent(site)}
    _check_names(latent, structure)
    with program.running(generator, fresh=True):  # its draws are private
        for name, site in latent.items():
            _check_site(name, site, model[name], structure)
    own = any(a.get(n) != shape for a in shapes for n, shape in shapes[0].items())
    finite = any(structure.latents[name].finite for name in latent)
    smooth = all(getattr(site["fn"], "has_rsample", False) for site in sites.values())
    amortised = not structure.locals or not (automatic or own)
    return replace(structure, amortised=amortised, plain=smooth and not finite)


def _check_names(latent: Iterable[str], structure: Structure) -> None:
    for name in latent:
        if name not in structure.latents:
            raise StructureError(
                f"The guide has a site {name!r}, the model has none", "", nearest(name, structure.latents)
            )
    for name, wanted in structure.latents.items():
        if name not in latent and not wanted.finite:
            raise StructureError(
                f"The guide has no site for the latent {name!r}",
                "one for every continuous latent",
                f"It has: {', '.join(latent) or 'none'}",
            )


def _check_site(name: str, guide: Site, model: Site, structure: Structure) -> None:
    mine, theirs = (
        {frame.name: (frame.dim, frame.size) for frame in site["cond_indep_stack"]} for site in (guide, model)
    )
    if mine != theirs:
        raise StructureError(
            f"The guide's {name!r} stands in the plates {_shown(mine)}, the model's in {_shown(theirs)}",
            "the same plates, by name, dim and size",
            "Give the guide the model's plates",
        )
    if guide["value"].shape != model["value"].shape:
        raise StructureError(
            f"The guide's {name!r} has shape {tuple(guide['value'].shape)}, the model's {tuple(model['value'].shape)}",
            "the same shape",
            "Check the guide's parameters, and to_event",
        )
    _check_support(name, guide, model)


def _shown(plates: Mapping[str, tuple[int, int]]) -> str:
    return ", ".join(f"{name!r} (dim {dim}, size {size})" for name, (dim, size) in plates.items()) or "none"


def _check_support(name: str, guide: Site, model: Site) -> None:
    """Draws of each must lie in the other's support: a guide that can't reach a part of it is biased, not noisy."""
    if type(guide["fn"]).__name__ == "Delta":
        inside = model["fn"].support.check(guide["value"])
        if not bool(inside.all()):
            raise _other_support(name, guide, model)
        return
    for a, b in ((guide, model), (model, guide)):
        with torch.no_grad():
            draws = a["fn"].expand(torch.Size([64]) + a["fn"].batch_shape).sample()
        support = b["fn"].support
        if not bool(support.check(draws).all()):
            raise _other_support(name, guide, model)


def _other_support(name: str, guide: Site, model: Site) -> StructureError:
    return StructureError(
        f"The guide's {name!r} lives on {guide['fn'].support}, the model's on {model['fn'].support}",
        "the same support",
        "Change the guide's distribution: LogNormal for positive latents, say",
    )
