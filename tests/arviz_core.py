"""What the adapter makes of fixed arrays, under any Python with NumPy and ArviZ: a script that prints JSON.

``tests/test_arviz.py`` runs it in its own process for ArviZ 1.x, and calls ``facts`` itself for ArviZ 0.23.
"""

import json
import sys
import warnings

import numpy as np

from probgen.evaluate import arviz as adapter

SHAPE, ROWS = (2, 450), ["a", "b", "c", "d", "e", "f", "g"]


def arrays():
    random = np.random.RandomState(3)  # its stream never changes
    mu, y = 0.3 * random.normal(size=SHAPE), random.normal(size=7)
    log_lik = -0.5 * (y - mu[..., None]) ** 2 - 0.5 * np.log(2 * np.pi)
    log_p, log_q = -0.5 * (mu / 0.25) ** 2, -0.5 * (mu / 0.3) ** 2
    return mu, y, log_lik, log_p, log_q, random


def groups():
    mu, y, log_lik, log_p, log_q, random = arrays()
    return {
        "posterior": {"mu": mu, "slope": random.normal(size=(*SHAPE, 2))},
        "sample_stats": {"lp": log_p, "log_p": log_p, "log_q": log_q},
        "log_likelihood": {"y": log_lik},
        "log_prior": {"log_prior": -(mu**2)},
        "prior": {"mu": random.normal(size=(1, 50))},
        "prior_predictive": {"y": random.normal(size=(1, 50, 7))},
        "posterior_predictive": {"y": random.normal(size=(*SHAPE, 7))},
        "observed_data": {"y": y},
    }


def made():
    return adapter.container(
        groups(), {"row": ROWS, "column": ["u", "v"]}, {"y": ["row"], "slope": ["column"]}, {"model": "a test"}
    )


def facts():
    az, found = adapter._arviz(), made()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loo = az.loo(found, pointwise=True, reff=1.0)
        *_, log_lik, log_p, log_q, _ = arrays()
        one = adapter.elpd_data(
            elpd_i=log_lik.mean((0, 1)), k=np.full(7, np.nan), se=1.5, p=2.0, good_k=0.7, draws=0, names=ROWS,
            kind="k-fold", unit="rows",
        )  # fmt: skip
        other = adapter.elpd_data(
            elpd_i=log_lik.mean((0, 1)) - np.arange(7), k=np.full(7, 0.2), se=1.0, p=1.0, good_k=0.7, draws=900,
            names=ROWS, kind="psis-loo", unit="rows",
        )  # fmt: skip
        assert "Pareto" in str(other)
        assert "Pareto" not in str(one)
        warnings.simplefilter("ignore")  # pandas warns ArviZ 0.23 of its own next version
        table = az.compare({"other": other, "one": one})
    new = hasattr(loo, "elpd_i")
    names = list(found.children) if new else found.groups()
    said = {
        "version": az.__version__,
        "type": type(found).__name__,
        "groups": sorted(names),
        "dims": list(found["posterior"]["slope"].dims),
        "rows": found["log_likelihood"]["row"].values.tolist(),
        "attrs": dict(found.attrs)["model"],
        "elpd_i": np.asarray(loo.elpd_i if new else loo.loo_i).tolist(),
        "k": np.asarray(loo.pareto_k).tolist(),
        "ranked": table.index.tolist(),
        "differences": np.abs(table["elpd_diff"]).tolist(),
        "weights": table["weight"].tolist(),
    }
    if new:
        import xarray

        parts = [xarray.DataArray(part, dims=("chain", "draw")) for part in (log_p, log_q)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            corrected = az.loo_approximate_posterior(found, *parts, pointwise=True)
        said["approximate"] = np.asarray(corrected.elpd_i).tolist()
    return said


if __name__ == "__main__":
    json.dump(facts(), sys.stdout)
