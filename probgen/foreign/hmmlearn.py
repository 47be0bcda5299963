"""The door to hmmlearn: its fitted models as ours, and ours as its."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from probgen import emissions
from probgen.errors import MissingExtra, NotFittedError, StructureError
from probgen.events import Series
from probgen.model import FitReport
from probgen.models.hmm import HMM
from probgen.transitions import Markov

__all__ = ["export", "wrap"]

_PARTS = {
    "CategoricalHMM": ("emissionprob_",),
    "GaussianHMM": ("means_", "_covars_"),
    "GMMHMM": ("weights_", "means_", "covars_"),
    "PoissonHMM": ("lambdas_",),
}


def wrap(foreign: Any) -> HMM:
    kind = type(foreign).__name__
    if kind not in _PARTS:
        raise StructureError(
            f"hmmlearn's {kind}", f"one of {', '.join(_PARTS)}", "Its emission has no counterpart here"
        )
    lacking = [name for name in ("startprob_", "transmat_", *_PARTS[kind]) if not hasattr(foreign, name)]
    if lacking:
        raise NotFittedError(f"This {kind} has no {', '.join(lacking)}", "a fitted model", "Call its fit first")
    start, moves = (_probabilities(getattr(foreign, name), name) for name in ("startprob_", "transmat_"))
    hmm = {"CategoricalHMM": _categorical, "GaussianHMM": _normal, "GMMHMM": _mixture, "PoissonHMM": _poisson}[kind](
        foreign
    )
    with torch.no_grad():
        hmm.get_parameter("transitions.initial_logits").copy_(start.log())
        hmm.get_parameter("transitions.logits").copy_(moves.log())
    hmm.report = FitReport((), 0, "imported")
    return hmm.eval()


def _probabilities(values: Any, name: str) -> Tensor:
    table = torch.as_tensor(np.asarray(values, dtype=np.float64))
    if not bool((table >= 0).all()) or float((table.sum(-1) - 1).abs().max()) > 1e-6:
        raise StructureError(f"{name} with row sums {table.sum(-1).tolist()}", "rows that add up to 1", "Fit it again")
    return table


def _of(values: Any) -> Tensor:
    return torch.as_tensor(np.array(values, dtype=np.float64))


def _categorical(foreign: Any) -> HMM:
    table = _probabilities(foreign.emissionprob_, "emissionprob_")
    states, levels = table.shape
    emission = emissions.Categorical(levels, smoothing=0.0)
    hmm = HMM(Series((1,), levels=levels), states, emission, Markov())
    with torch.no_grad():
        hmm.get_parameter("emission.logits").copy_(table.log()[:, None])
    return hmm


def _poisson(foreign: Any) -> HMM:
    rates = _of(foreign.lambdas_)
    hmm = HMM(Series((rates.shape[1],), support="count"), len(rates), emissions.Poisson(rates.shape[1]), Markov())
    with torch.no_grad():
        hmm.get_parameter("emission.log_rate").copy_(rates.log())
    return hmm


def _normal(foreign: Any) -> HMM:
    means = _of(foreign.means_)
    states, dim = means.shape
    emission = emissions.Normal(dim, foreign.covariance_type)
    hmm = HMM(Series((dim,)), states, emission, Markov())
    with torch.no_grad():
        hmm.get_parameter("emission.loc").copy_(means)
        _put_covariance(hmm.emission, _of(foreign._covars_))
    return hmm


def _mixture(foreign: Any) -> HMM:
    if foreign.covariance_type == "tied":
        raise StructureError("A GMMHMM whose components share a covariance", "full, diag or spherical", "Fit it so")
    weights = _probabilities(foreign.weights_, "weights_")
    means = _of(foreign.means_)
    states, components, dim = means.shape
    emission = emissions.NormalMixture(dim, components, foreign.covariance_type)
    hmm = HMM(Series((dim,)), states, emission, Markov())
    with torch.no_grad():
        hmm.get_parameter("emission.logits").copy_(weights.log())
        hmm.get_parameter("emission.of.loc").copy_(means.reshape(-1, dim))
        _put_covariance(hmm.get_submodule("emission.of"), _of(foreign.covars_).flatten(0, 1))
    return hmm


def _put_covariance(emission: Any, covariance: Tensor) -> None:
    if emission.matrix:
        emission._set_factor(torch.linalg.cholesky(covariance))
    else:
        emission.log_scale.copy_(0.5 * covariance.reshape(emission.log_scale.shape).log())


def export(model: Any) -> Any:
    if not isinstance(model, HMM) or type(model.transitions) is not Markov or model.tie is not None or model.context:
        raise StructureError(
            f"{model!r}", "an HMM with Markov transitions, without ties and inputs", "hmmlearn has no more"
        )
    try:
        from hmmlearn import hmm as theirs
    except ImportError as missing:
        raise MissingExtra("hmmlearn", "hmmlearn") from missing
    kinds = {"Categorical": _to_categorical, "Normal": _to_normal, "Poisson": _to_poisson, "NormalMixture": _to_mixture}
    name = type(model.emission).__name__
    if name not in kinds:
        raise StructureError(f"The emission {model.emission!r}", f"one of {', '.join(kinds)}", "hmmlearn has no other")
    with torch.no_grad():
        made = kinds[name](model, theirs)
        made.startprob_ = model.transitions.log_initial().exp().numpy()
        made.transmat_ = model.transitions.log_matrix().exp().numpy()
    return made


def _to_categorical(model: Any, theirs: Any) -> Any:
    table = model.emission.table().exp()
    if table.shape[1] != 1:
        raise StructureError(f"{table.shape[1]} categories a step", "one", "hmmlearn's CategoricalHMM has one column")
    made = theirs.CategoricalHMM(model.states)
    made.emissionprob_, made.n_features = table[:, 0].numpy(), table.shape[2]
    return made


def _to_poisson(model: Any, theirs: Any) -> Any:
    made = theirs.PoissonHMM(model.states)
    made.lambdas_, made.n_features = model.emission.log_rate.exp().numpy(), model.emission.width
    return made


def _to_normal(model: Any, theirs: Any) -> Any:
    emission = model.emission
    made = theirs.GaussianHMM(model.states, emission.covariance)
    made.means_, made.n_features = emission.loc.numpy().copy(), emission.width
    scale = emission.scale()
    if emission.covariance == "tied":
        made.covars_ = (scale[0] @ scale[0].T).numpy()
    elif emission.covariance == "full":
        made.covars_ = (scale @ scale.mT).numpy()
    else:
        made.covars_ = (scale[:, 0] if emission.covariance == "spherical" else scale).square().numpy()
    return made


def _to_mixture(model: Any, theirs: Any) -> Any:
    emission = model.emission
    if emission.covariance == "tied":
        raise StructureError("One covariance for all components of all states", "full, diag or spherical", "Fit it so")
    made = theirs.GMMHMM(model.states, emission.components, covariance_type=emission.covariance)
    shape = (model.states, emission.components)
    made.weights_, made.means_ = emission.weights().numpy(), emission.of.loc.reshape(*shape, -1).numpy().copy()
    made.n_features = emission.width
    scale = emission.of.scale()
    covariance = scale @ scale.mT if emission.of.matrix else scale.square()
    made.covars_ = (covariance[:, 0] if emission.covariance == "spherical" else covariance).unflatten(0, shape).numpy()
    return made
