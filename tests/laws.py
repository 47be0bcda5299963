"""What the laws need: the data each family is tried on, how long it is fitted, what does not apply to it and why.

A family joins the laws by being listed in store.FAMILIES. This is the one place to say more about it: the options of a
quick fit (QUICK) and of a small model (SMALL), and, each with its reason, what a law can't ask of it (DOES_NOT_APPLY,
NO_DRAWS, NO_GAPS). The laws stand in test_laws.py, test_laws_numbers.py and test_laws_state.py: run test_laws*.py.
"""

import warnings

import numpy as np
import pytest
import torch
from scipy import stats

from probgen import store
from probgen.errors import StructureError
from probgen.events import Array, Category, Count, Panel, Ragged, Real, Record, Series, Table, Text
from probgen.model import Latent

ALPHA = 2e-6  # false-alarm rate of one statistical test; some fifty of them make 1e-4
QUICK = {
    "Diffusion": {"steps": 40, "batch_size": 64},
    "Flow": {"steps": 30, "batch_size": 64},
    "VAE": {"steps": 400, "learning_rate": 0.01},
    "GAN": {"steps": 30},
    "Mixture": {"restarts": 1},
    "HMM": {"restarts": 1, "max_iter": 25},
    "Standardize": {"restarts": 1, "max_iter": 25},
    "StateSpace": {"restarts": 1, "max_iter": 20},
    "LanguageModel": {"steps": 60},
    "TextDiffusion": {"steps": 20, "batch_size": 16},
    "MultimodalVAE": {"steps": 30},
    "Contrastive": {"steps": 20},
}
BRIEF = {
    **QUICK,
    **{name: {**QUICK[name], "steps": 10} for name in ("Diffusion", "Flow", "GAN", "TextDiffusion", "VAE")},
}
SMALL = {
    "Diffusion": {"hidden": 16, "blocks": 1, "chain": 6},
    "Flow": {"layers": 2, "hidden": (16,), "bins": 5},
    "HMM": {"states": 2},
    "LanguageModel": {"layers": 1, "width": 16, "heads": 2, "pairs": 50, "window": 16, "precision": "double"},
    "TextDiffusion": {
        "layers": 1,
        "width": 16,
        "heads": 2,
        "pairs": 50,
        "block": 4,
        "before": 4,
        "precision": "double",
    },
    "VAE": {"latent_dim": 1, "hidden": (16,)},
    "MultimodalVAE": {"latent_dim": 2, "hidden": (16,), "text": 8, "pseudo_inputs": 8},
    "Contrastive": {"dim": 8, "hidden": (16,), "text": 8},
    "GAN": {"latent_dim": 2, "hidden": (16,)},
    "Mixture": {"components": 3},
}
NO_DRAWS = {
    "Compressor": "a program that packs measures lengths, it draws nothing",
    "Contrastive": "it compares what it is given, it draws nothing",
}
DOES_NOT_APPLY = {
    ("samples", "Contrastive"): NO_DRAWS["Contrastive"],
    ("numbers", "Contrastive"): "its scores have a measure of their own: tests/test_contrastive.py",
    ("program scores", "Contrastive"): "its program is a factor of similarities, no density",
    ("samples", "Compressor"): NO_DRAWS["Compressor"],
    ("program trains", "Compressor"): "a program that packs has no parameters",
    ("steps", "TextDiffusion"): "a block is drawn in all orders: its symbols have no steps",
    ("exact", "VAE"): "a VAE gives lower bounds; they are held against quadrature instead",
    ("exact", "Diffusion"): "a density costs an integral: tests/test_diffusion.py integrates one, and sums its bound",
    ("exact", "GAN"): "a GAN has no likelihood",
    ("exact", "TextDiffusion"): "it gives lower bounds: tests/test_textdiffusion.py holds them against all orders",
    ("objective", "GAN"): "two players have no common objective that rises",
    ("program scores", "Diffusion"): "its latents are a chain: tests/test_diffusion.py holds its bound to its program",
    ("program scores", "GAN"): "its program has no density to condition on",
    (
        "program scores",
        "TextDiffusion",
    ): "its latents are orders: tests/test_textdiffusion.py holds its bound to its program",
    ("program scores", "VAE"): "its latents are continuous: its hooks are held to its trace instead",
}


def gappy(rng, length):
    x = rng.normal(size=(length, 2)) + 3 * rng.integers(2)
    return np.where(rng.random((length, 2)) < 0.1, np.nan, x)


def draw_data():
    rng = np.random.default_rng(7)
    n = 150
    z = rng.normal(size=(n, 2))
    level = rng.integers(4, size=n)
    table = {
        "length": np.ma.MaskedArray(z[:, 0], rng.random(n) < 0.1),
        "colour": np.array(["red", "green", "blue"])[rng.integers(3, size=n)],
        "visits": rng.poisson(3.0, n),
    }
    columns = {"length": Real("cm"), "colour": Category(("red", "green", "blue", "never")), "visits": Count()}
    steps = {"tune": np.repeat(np.arange(30), 5), "value": z[:, 0].round(3), "colour": table["colour"]}
    pair = {"a": z[:, 0], "b": z[:, 0] * 0.5 + z[:, 1]}
    return {
        "real": (Array((2,)), z @ np.array([[1.0, 0.6], [0.0, 0.8]]) + 3.0 * (level[:, None] == 0)),
        "single": (Array(()), z[:, 0]),
        "levels": (
            Array((3,), levels=4),
            np.stack([level, (level + rng.integers(2, size=n)) % 4, rng.integers(4, size=n)], 1),
        ),
        "binary": (Array((2, 2), levels=2), (z[:, [0, 0, 0, 0]] + 0.1 * rng.normal(size=(n, 4)) > 0).reshape(n, 2, 2)),
        "rounded": (Array((2,), resolution=0.5, unit="cm"), np.round(2 * z) / 2),
        "positive": (Array((2,), support="positive"), np.exp(z)),
        "unit": (Array((2,), support="unit"), stats.norm.cdf(z)),
        "count": (Array((1,), support="count"), rng.poisson(4.0, (n, 1))),
        "table": (Table(columns), table),
        "categories": (
            Table({"u": Category((0, 1, 2)), "w": Category(("no", "yes"))}),
            {"u": np.minimum(level, 2), "w": np.where(level + rng.integers(2, size=n) > 1, "yes", "no")},
        ),
        "mixed": (
            Table({"length": Real("cm"), "colour": columns["colour"], "visits": Count()}, missing=False),
            {name: values[:60] for name, values in {**table, "length": z[:, 0]}.items()},
        ),
        "reals": (Table({"a": Real(), "b": Real()}, missing=False), pair),
        "series": (Series(levels=3), [rng.choice(3, p=(0.7, 0.2, 0.1), size=1 + i % 7) for i in range(n)]),
        "real series": (Series((2,)), [gappy(rng, 1 + i % 4) for i in range(60)]),
        "rounded series": (Series(resolution=0.5), [np.round(2 * rng.normal(size=1 + i % 6)) / 2 for i in range(40)]),
        "count series": (Series(support="count"), [rng.poisson(3.0 + i % 4, size=1 + i % 9) for i in range(40)]),
        "panel": (Panel({"value": Real(), "colour": columns["colour"]}, sequence="tune"), steps),
        "text": (Text(), [" ".join(["one", "two", "three"][: 1 + i % 3]) + str(i % 5) for i in range(30)]),
        "record": (
            Record(a=Array((2,)), b=Text()),
            {"a": z[:60], "b": [["x", "yes", "no"][i % 3] for i in range(60)]},
        ),
    }


DATA = draw_data()
NO_GAPS = {
    "Diffusion": "its network knows whole rows only: rows with gaps are refused",
    "Flow": "the marginal of some cells of a flow has no closed form: rows with gaps are refused",
}
WITH_GAPS = {"table"}
CASES = [
    (f, e)
    for f in store.FAMILIES
    for e in DATA
    if store.family(f).suits(DATA[e][0]) is None and not (f in NO_GAPS and e in WITH_GAPS)
]
_fitted = {}


def unfitted(family, event):
    """A small model for that event."""
    return store.family(family).for_event(DATA[event][0], **SMALL.get(family, {}))


# Not the class: a flow is exact on reals and a latent-variable model on rounded cells
LATENT = [case for case in CASES if isinstance(unfitted(*case), Latent)]


def fitted(family, event):
    """A quickly fitted model, made once."""
    if (family, event) not in _fitted:
        made = unfitted(family, event)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            _fitted[family, event] = made.fit(DATA[event][1], seed=3, **QUICK.get(family, {}))
    return _fitted[family, event]


OF_THE_EXACT = {"exact", "program scores"}  # latent cases are held to quadrature and to their traces instead


def every(law, events=None):
    """The (family, event) pairs that a law speaks about."""
    chosen = [c for c in CASES if (law, c[0]) not in DOES_NOT_APPLY and (events is None or c[1] in events)]
    chosen = [c for c in chosen if law not in OF_THE_EXACT or c not in LATENT]
    assert chosen, law
    return pytest.mark.parametrize(("family", "event"), chosen, ids=[f"{f}-{e}" for f, e in chosen])


def rows_of(event, checked, rows):
    """Some rows in a form that the event takes."""
    x = checked.x
    if isinstance(event, Panel | Record | Text):
        return event.restore(x[torch.as_tensor(rows)], "dict")
    if isinstance(x, Ragged):
        return [part.numpy() for part in x[torch.as_tensor(rows)].split()]
    if isinstance(event, Table):
        return event.restore(x[torch.as_tensor(rows)], "dict")
    return x[torch.as_tensor(rows)].numpy()


def few(event, n=12):
    """The first rows of a data set, in a form that its event takes: enough for the laws on bits, copies and state."""
    about, x = DATA[event]
    checked = about.check(x)
    return rows_of(about, checked, np.arange(min(n, len(checked))))


def briefly_fitted(family, event, made=None):
    """A fit long enough to be one, for the laws that its quality says nothing about."""
    return (made or unfitted(family, event)).fit(DATA[event][1], seed=3, **BRIEF.get(family, {}))


def numbers(lp):
    """Nats, or the refusal's text: what two answers must agree in."""
    return lp.reason if lp.refused.any() else lp.nats


def tolerance(model):
    return 1e-12 if all(p.dtype == torch.float64 for p in model.parameters()) else 1e-5


def draws(model, n, seed=0):
    """What a model draws; of one that draws nothing, that it says so."""
    if type(model).__name__ not in NO_DRAWS:
        return str(model.sample(n, seed=seed))
    with pytest.raises(StructureError, match="a model that draws"):
        model.sample(n, seed=seed)
    return f"refused {seed}"
