"""The door to ArviZ: posteriors, log-likelihoods and predictive draws as its containers, on ArviZ 0.23 and on 1.x.

``container`` and ``elpd_data`` know arrays alone; this file loads without torch.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from probgen.errors import DataError, MissingExtra, ParameterError, StructureError

if TYPE_CHECKING:
    from probgen.evaluate.loo.rows import Data
    from probgen.model import GenerativeModel

__all__ = ["container", "elpd_data", "to_arviz"]

Arrays = Mapping[str, np.ndarray]

FEWEST = 11  # draws below which ArviZ's LOO breaks, or answers k = inf
SAMPLED = (
    "posterior", "sample_stats", "log_likelihood", "log_prior", "posterior_predictive", "prior", "prior_predictive",
)  # fmt: skip
_CELLS = 1 << 24  # numbers of one predictive group
_MOST = 1000  # draws from the prior


# The core: arrays in, a container of ArviZ out


def container(
    groups: Mapping[str, Arrays],
    coords: Mapping[str, Sequence[Any]] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> Any:
    """Groups of named arrays as InferenceData (ArviZ 0.23) or DataTree (1.x).

    Arguments:
        groups: By ArviZ's names, each a dict of arrays: (chains, draws, *shape), of "observed_data" (*shape).
        coords: Labels by dimension.
        dims: Names of the dimensions of ``shape``, by variable.
        attrs: Facts about the whole.

    Raises:
        StructureError: no group "posterior", several likelihoods, arrays without chains and draws or that differ in
            them. DataError: fewer than 11 draws, log-likelihoods that are NaN or infinite. MissingExtra: no ArviZ.
    """
    arrays = {name: {n: np.asarray(a) for n, a in group.items()} for name, group in groups.items() if group}
    _refuse(arrays)
    coords = {name: _labels(values) for name, values in (coords or {}).items()}
    dims = {name: list(names) for name, names in (dims or {}).items()}
    az = _arviz()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # groups and shapes that it finds unusual
        if not hasattr(az, "InferenceData") or _version(az) >= (1,):
            return az.from_dict(arrays, coords=coords, dims=dims, attrs={"/": dict(attrs or {})})
        later = {name: arrays.pop(name) for name in ("log_prior",) if name in arrays}
        found = az.from_dict(**arrays, coords=coords, dims=dims, attrs=dict(attrs or {}))
        if later:
            found.add_groups(later, coords=coords, dims=dims)
    return found


def elpd_data(
    *,
    elpd_i: np.ndarray,
    k: np.ndarray,
    se: float,
    p: float,
    good_k: float,
    draws: int,
    names: Sequence[Any] | np.ndarray,
    kind: str,
    unit: str = "rows",
    warning: bool = False,
) -> Any:
    """Cross-validated log densities as ArviZ's ELPDData, which ``az.compare`` takes on both versions.

    Arguments:
        elpd_i: Of each row, (n,), finite, in nats.
        k: Of its tail of weights, NaN where none were used.
        names: Of the rows. The other arguments: as of ``Loo``.

    ArviZ 0.23 knows but LOO, and prints "Pareto k" of whatever it is given: where no row has one, its table is left
    out. In its ``method`` stands what the numbers are.
    """
    import xarray

    az, dimension = _arviz(), {"rows": "row", "groups": "group", "blocks": "block"}[unit]
    coords = {dimension: _labels(names)}
    each, tails = (xarray.DataArray(np.asarray(v), dims=dimension, coords=coords) for v in (elpd_i, k))
    weighed, total, n = not np.isnan(k).all(), float(np.sum(elpd_i)), len(elpd_i)
    if _version(az) < (1,):
        from arviz.stats.stats_utils import ELPDData

        found = {
            "elpd_loo": total, "se": se, "p_loo": p, "n_samples": draws, "n_data_points": n, "warning": warning,
            "loo_i": each, "scale": "log", "good_k": good_k, **({"pareto_k": tails} if weighed else {}),
        }  # fmt: skip
        return ELPDData(data=list(found.values()), index=list(found))
    from arviz_stats.utils import ELPDDataLOO

    return ELPDDataLOO(
        elpd=total, se=se, p=p, n_samples=draws, n_data_points=n, scale="log", warning=warning, good_k=good_k,
        elpd_i=each, pareto_k=tails if weighed else None,
    )  # fmt: skip


def _arviz() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it announces its next version
            import arviz
    except ImportError as missing:
        raise MissingExtra("arviz", "arviz") from missing
    return arviz


def _version(az: Any) -> tuple[int, ...]:
    return tuple(int(part) for part in az.__version__.split(".")[:1])


def _labels(values: Sequence[Any] | np.ndarray) -> list[Any]:
    """Plain labels of one type."""
    plain = np.asarray(values).tolist() if not isinstance(values, list) else values
    return plain if len({type(v) for v in plain}) == 1 and isinstance(plain[0], int | str) else [str(v) for v in plain]


def _refuse(groups: Mapping[str, Arrays]) -> None:
    if "posterior" not in groups:
        raise StructureError(
            f"Groups {', '.join(groups) or 'none'} without a posterior", "draws of the parameters",
            "Fit with method='nuts'; of a point fit loo(model, x).to_elpd() goes to ArviZ",
        )  # fmt: skip
    if odd := [name for name in groups if name not in (*SAMPLED, "observed_data", "constant_data")]:
        raise StructureError(f"A group {odd[0]!r}", f"one of {', '.join(SAMPLED)}, observed_data, constant_data")
    sizes = {}
    for name in SAMPLED:
        for variable, array in groups.get(name, {}).items():
            if array.ndim < 2:
                raise StructureError(f"{name}[{variable!r}] has shape {array.shape}", "(chains, draws, ...)")
            sizes[name] = array.shape[:2]
    if sizes.get("log_likelihood", sizes["posterior"]) != sizes["posterior"]:
        raise StructureError(f"log_likelihood of (chains, draws) {sizes['log_likelihood']}", f"{sizes['posterior']}")
    if (many := int(np.prod(sizes["posterior"]))) < FEWEST:
        raise DataError(f"{many} posterior draws", f"at least {FEWEST}", "ArviZ fits a tail to them: draw hundreds")
    _refuse_likelihoods(groups.get("log_likelihood", {}))


def _refuse_likelihoods(found: Arrays) -> None:
    if len(found) > 1:
        raise StructureError(
            f"Likelihoods of {', '.join(found)}", "one of all that a row holds", "Add them, row by row: a joint density"
        )
    for name, values in found.items():
        bad = ~np.isfinite(values).all(axis=(0, 1))
        if bad.any():
            place = tuple(int(i) for i in np.argwhere(bad)[0])
            raise DataError(
                f"log_likelihood[{name!r}] is NaN or infinite in {int(bad.sum())} places, first {place}",
                "finite numbers: ArviZ answers NaN for the whole",
                "probgen.loo counts impossible rows; for ArviZ leave them out",
            )


# A model's groups


def to_arviz(
    model: "GenerativeModel", x: Any = None, given: Any = None, *, by: str = "row", seed: int | None = 0
) -> Any:
    """A Bayesian fit as ArviZ's container: InferenceData (ArviZ 0.23) or DataTree (1.x).

    Groups: posterior, sample_stats, log_prior, prior where the family draws from it; with data also log_likelihood,
    posterior_predictive (a data set of one theta for each draw), prior_predictive and observed_data. Rows are labelled
    by their keys, variables by their columns; levels are codes, their meaning is among the attributes. Of approximate
    posteriors ``log_p`` and ``log_q`` stand in sample_stats, for ``loo_approximate_posterior``.

    Arguments:
        model: Fitted with method "nuts", "svi", "laplace" or "conjugate".
        x: Rows, such as those that it was fitted on; None leaves out what is about data.
        given: Their covariates.
        by: What one log-likelihood is of: a "row"; for sequences also "sequence" (the same by another name) or "step",
            log p(x_t | x_<t, theta).
        seed: Of predictive draws.

    Raises:
        StructureError: a point fit, steps of rows that are no sequences. DataError: fewer than 11 draws,
            log-likelihoods that are NaN or infinite. MissingExtra: ArviZ is not installed.
    """
    from probgen.evaluate.loo.rows import Data, draws_of

    if by not in ("row", "sequence", "step"):
        raise ParameterError(f"by={by!r}", '"row", "sequence" or "step"')
    if not hasattr(model, "_check_fitted"):
        raise ParameterError(f"A {type(model).__name__} for a model", "a fitted model", "probgen.wrap takes others")
    draws = draws_of(model)
    if draws is None:
        model._check_fitted()
        raise StructureError(
            f"{type(model).__name__} is a point fit: it has no posterior draws",
            "a Bayesian fit",
            "Fit with method='nuts', or give ArviZ loo(model, x).to_elpd()",
        )
    if x is None and given is not None:
        raise ParameterError("given= without x", "both, or neither", "Give the rows")
    shape = (draws.chains, draws.draws)
    groups: dict[str, dict[str, np.ndarray]] = {
        "posterior": {name: _array(value) for name, value in draws.values.items()},
        "sample_stats": _stats(draws),
        "log_prior": _log_prior(model, shape),
        "prior": _prior(model, seed),
    }
    coords: dict[str, Sequence[Any]] = dict(getattr(model, "draw_coords", {}))
    dims, attrs = dict(getattr(model, "draw_dims", {})), _attrs(model, draws, by)
    if x is not None:
        data = Data.of(model, x, given)
        about = _Names(data, by)
        groups |= _of_rows(data, shape, by, about, seed)
        for name in ("posterior", "prior"):  # a column's own parameter has other dimensions than the column
            groups[name] = {f"theta[{v}]" if v in about.dims else v: array for v, array in groups[name].items()}
        coords, dims = coords | about.coords, dims | about.dims
        attrs |= about.attrs
    return container(groups, coords, dims, attrs)


def _array(value: Any) -> np.ndarray:
    return value.detach().numpy() if hasattr(value, "detach") else np.asarray(value)


def _log_prior(model: Any, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    hook = getattr(model, "_log_prior_draws", None)
    return {} if hook is None else {"log_prior": _array(hook()).reshape(shape)}


def _stats(draws: Any) -> dict[str, np.ndarray]:
    found = {name: _array(value) for name, value in draws.stats.items()}
    if draws.log_p is not None and draws.log_q is not None:
        found |= {"log_p": _array(draws.log_p), "log_q": _array(draws.log_q)}
    return found


def _prior(model: Any, seed: int | None) -> dict[str, np.ndarray]:
    """Parameters drawn from the prior, where the family tells it."""
    from probgen.evaluate.loo.rows import draws_of
    from probgen.evaluate.replicates import prior_numbers, with_numbers
    from probgen.model import generator_of

    try:
        found = draws_of(with_numbers(model, prior_numbers(model, _MOST, generator_of(seed))))
    except StructureError:
        return {}
    return {} if found is None else {name: _array(value) for name, value in found.values.items()}


def _attrs(model: "GenerativeModel", draws: Any, by: str) -> dict[str, str]:
    return {
        "inference_library": "probgen", "model": repr(model), "method": draws.method,
        "log_likelihood": f"log p of one {by}, latents of a single row integrated out",
    }  # fmt: skip


class _Names:
    """Names of the rows, steps and cells of some data.

    Attributes:
        name: Of the log-likelihood: that of the variable, where that is one of as many numbers; else "log_lik".
        columns, sequences: Of the data.
        coords, dims, attrs: Of the container.
    """

    def __init__(self, data: "Data", by: str) -> None:
        from probgen.events import Category, Panel, Ragged, Table, steps_of

        event, x = data.model.event, data.checked.x
        self.sequences = isinstance(x, Ragged)
        if by != "row" and not self.sequences:
            raise StructureError(f"by={by!r} for {event!r}", "sequences: Series or Panel", "by='row'")
        if isinstance(x, Mapping):
            raise StructureError(f"A container for {event!r}", "rows of one event", "ArviZ has no records")
        self.columns = list(event.columns) if isinstance(event, Table | Panel) else []
        along = "step" if self.sequences else "row"
        keys = data.checked.about.keys
        steps = steps_of(data.checked).keys if self.sequences else keys
        self.coords = {along: _labels(steps), by: _labels(steps if by == "step" else keys)}
        shape = () if self.columns else x.values.shape[1:] if self.sequences else x.shape[1:]
        cells = [f"x_dim_{i}" for i in range(len(shape))]
        self.dims = {name: [along] for name in self.columns} or {"x": [along, *cells]}
        only = list(self.dims) if len(self.dims) == 1 else []
        self.name = only[0] if only and self.dims[only[0]] == [by] else "log_lik"
        self.dims[self.name] = [by]
        levels = {n: c.levels for n, c in getattr(event, "columns", {}).items() if isinstance(c, Category)}
        self.attrs = {f"levels of {name}": repr(found) for name, found in levels.items()}

    def variables(self, cells: np.ndarray, lead: tuple[int, ...] = ()) -> dict[str, np.ndarray]:
        """Cells (*lead, rows or steps, ...) by variable."""
        if not self.columns:
            return {"x": cells}
        flat = cells.reshape(*cells.shape[: len(lead) + 1], -1)
        return {name: flat[..., j] for j, name in enumerate(self.columns)}


def _of_rows(
    data: "Data", shape: tuple[int, int], by: str, about: _Names, seed: int | None
) -> dict[str, dict[str, np.ndarray]]:
    """The groups that are about data."""
    from probgen.evaluate.loo.rows import log_lik_of, log_lik_steps_of
    from probgen.evaluate.replicates import places_of, replicates

    log_lik = log_lik_steps_of(data.model, data, seed) if by == "step" else log_lik_of(data.model, data, seed)
    x = data.checked.x
    cells = _array(x.values if about.sequences else x)
    many = math.prod(shape)
    groups = {
        "log_likelihood": {about.name: log_lik.reshape(*shape, -1)},
        "observed_data": about.variables(cells),
    }
    every = max(1, math.ceil(many * cells.size / _CELLS))
    kept = np.arange(many).reshape(shape)[:, ::every]
    for name, prior in (("posterior_predictive", False), ("prior_predictive", True)):
        places = None if prior else places_of(kept.reshape(-1))
        reps = min(_MOST, kept.size) if prior else kept.size
        try:
            made = list(replicates(data, reps, prior, seed, places))
        except StructureError:  # a family that does not replicate data sets, or has no prior
            continue
        drawn = [_array(part.values if about.sequences else part) for part in made]
        lead = (1, reps) if prior else kept.shape
        groups[name] = about.variables(np.stack(drawn).reshape(*lead, *cells.shape), lead)
    return groups
