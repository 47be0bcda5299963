"""GANs against the clock and on data whose truth is known: python tests/benchmarks/bench_gan.py PART [...]

gaussians [seconds [loss]]  eight gaussians: modes found, share within 3 standard deviations, divergence of the modes'
                            shares, C2ST of a random forest (held-out half), three seeds; CPU time of one thread
losses [seconds]            the same, one seed, for each loss
digits [seconds [path]]     8 x 8 digits: a grid of samples beside data, as PNG
iris [seconds]              a table: moments, species, and conditional draws beside the data
parzen                      kernel estimates at four bandwidths for a GAN and for true samples: why they must not rank
annealing                   a linear generator with noise: AIS and its gap beside the closed form
"""

import sys
import time
import warnings

import numpy as np
import torch
from scipy import stats

import probgen as pg
from probgen import datasets, plots
from probgen.events import Array

CENTRES = 2 * np.stack([np.cos(a := np.arange(8) * np.pi / 4), np.sin(a)], axis=1)


def modes(x):
    """Modes found (at least 1 % of the draws within 3 sd), share within 3 sd, KL of the modes' shares from uniform."""
    distance = np.linalg.norm(x[:, None] - CENTRES, axis=2)
    near = distance.min(1) < 0.6
    counts = np.bincount(distance.argmin(1)[near], minlength=8)
    p = counts / max(counts.sum(), 1)
    return int((counts > 0.01 * len(x)).sum()), near.mean(), float(np.sum(p * np.log(np.maximum(8 * p, 1e-12))))


def c2st(x, y, seed=0):
    """Held-out accuracy of a forest of 300 trees."""
    from sklearn.ensemble import RandomForestClassifier

    z, label = np.concatenate([x, y]), np.repeat([0, 1], [len(x), len(y)])
    order = np.random.default_rng(seed).permutation(len(z))
    half = len(z) // 2
    forest = RandomForestClassifier(300, min_samples_leaf=5, random_state=seed)
    forest.fit(z[order[:half]], label[order[:half]])
    return forest.score(z[order[half:]], label[order[half:]])


def train_gaussians(seconds, seed, rows=20_000, **options):
    """Steps that fit into so many CPU-seconds, by a pilot."""
    x = datasets.eight_gaussians(rows, seed).x
    made = {k: options.pop(k) for k in ("loss", "latent_dim", "hidden", "penalty", "spectral") if k in options}
    fit = dict(options)
    gan = pg.GAN.for_event(Array((2,)), **made)
    steps = fit.pop("steps", None) or _affordable(gan, x, seconds, fit)
    began = time.process_time()
    gan.fit(x, steps=steps, seed=seed, **fit)
    return gan, steps, time.process_time() - began


def _affordable(gan, x, seconds, fit):
    gan.fit(x, steps=10, seed=0, **fit)
    began = time.process_time()
    gan.fit(x, steps=40, seed=0, **fit)
    return int(40 * seconds / (time.process_time() - began))


def gaussians(seconds=40.0, loss="relativistic", seeds=3, **options):
    for seed in range(seeds):
        gan, steps, spent = train_gaussians(seconds, seed, loss=loss, **options)
        fresh = datasets.eight_gaussians(4000, 100 + seed).x
        x = gan.sample(4000, seed=1)
        found, share, kl = modes(gan.sample(20_000, seed=2))
        print(
            f"{loss} seed {seed}: {steps} steps, {spent:.0f} CPU-s, {found}/8 modes, {share:.3f} within 3 sd "
            f"(truth {modes(fresh)[1]:.3f}), KL of modes {kl:.4f}, C2ST {c2st(x, fresh):.3f}",
            flush=True,
        )


def losses(seconds=20.0):
    for loss in ("relativistic", "non_saturating", "wasserstein", "hinge"):
        gaussians(seconds, loss, seeds=1)
    gaussians(seconds, "hinge", seeds=1, spectral=True, penalty=0.0)


def digits(seconds=60.0, path="/tmp/gan_digits.png", **options):
    data = datasets.load("digits")
    gan = pg.GAN.for_event(data.event).fit(data.x, budget=seconds, seed=0, **options)
    x = gan.sample(1000, seed=0)
    plots.samples({"data": data.x[:64], "GAN": x[:64]}, path)
    flat = data.x.reshape(len(data.x), -1), x.reshape(len(x), -1)
    print(f"digits: {gan.report.steps} steps, {gan.report.seconds:.0f} s, C2ST {c2st(flat[0][:1000], flat[1]):.3f}")
    print(f"distance to the nearest digit: {nearest(flat[1], flat[0]):.1f}, of digits {nearest(*halves(flat[0])):.1f}")


def halves(x):
    return x[::2], x[1::2]


def nearest(x, y):
    """Median Euclidean distance of rows of x to the nearest row of y."""
    return float(np.median(torch.cdist(torch.tensor(x).double(), torch.tensor(y).double()).min(1).values))


def iris(seconds=30.0):
    data = datasets.load("iris")
    gan = pg.GAN.for_event(data.event).fit(data.x, budget=seconds, seed=0)
    checked, drawn = data.event.check(data.x).x.numpy(), data.event.check(gan.sample(2000, seed=0)).x.numpy()
    print(f"iris: {gan.report.steps} steps; means {checked.mean(0).round(2)} and {drawn.mean(0).round(2)}")
    print("deviations", checked.std(0).round(2), drawn.std(0).round(2))
    print("correlations", np.corrcoef(checked.T)[0].round(2), np.corrcoef(drawn.T)[0].round(2))
    for code, species in enumerate(data.event.columns["species"].levels):
        some = data.event.check(gan.sample(500, given={"species": species}, seed=1)).x.numpy()
        print(species, checked[checked[:, -1] == code].mean(0).round(2), some.mean(0).round(2))


def parzen(seconds=20.0):
    gan, *_ = train_gaussians(seconds, 0)
    data = datasets.load("eight_gaussians")
    x, true = data.x[:1000], datasets.eight_gaussians(5000, 9).x
    print(f"truth {data.log_density(x).mean():.3f} nats a row")
    for h in (0.02, 0.05, 0.1, 0.2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ours = gan.parzen(x, h, 5000, seed=0).nats.mean()
        squares = ((x[:, None] - true) ** 2).sum(-1) / (2 * h * h)
        theirs = (np.logaddexp.reduce(-squares, axis=1) - np.log(5000 * 2 * np.pi * h * h)).mean()
        print(f"h={h}: GAN {ours:.3f}, true samples {theirs:.3f}")


def annealing():
    rng = np.random.default_rng(0)
    w, b = rng.normal(size=(10, 5)), rng.normal(size=10)
    for s in (1.0, 0.3, 0.1):
        view = linear(w, b).with_noise(s)
        x = rng.normal(size=(40, 5)) @ w.T + b + s * rng.normal(size=(40, 10))
        truth = stats.multivariate_normal(b, w @ w.T + s * s * np.eye(10)).logpdf(x)
        for temperatures in (100, 400):
            by, began = pg.AIS(chains=16, temperatures=temperatures), time.process_time()
            short = truth - view.log_prob(x, by=by, seed=0).nats
            spent, gap = time.process_time() - began, view.gap(rows=40, by=by, seed=1)
            print(f"s={s}, T={temperatures}: {short.mean():.3f} below the truth, {gap!r}, {spent:.1f} CPU-s")


def linear(w, b):
    """A GAN whose generator is Wz + b."""
    gan = pg.GAN(Array((len(b),)), w.shape[1], (4,))
    gan.fit(np.random.default_rng(0).normal(size=(20, len(b))), steps=1, seed=0)
    gan.generator.net = pg_linear(w, b)
    gan.cells.centre.zero_(), gan.cells.spread.fill_(1.0)
    return gan


def pg_linear(w, b):
    from probgen.nn import MLP

    net = MLP(w.T.shape)
    net.layers[0].weight.data, net.layers[0].bias.data = torch.tensor(w).float(), torch.tensor(b).float()
    return net


if __name__ == "__main__":
    torch.set_num_threads(1)
    name, *rest = sys.argv[1:] or ["gaussians"]
    {f.__name__: f for f in (gaussians, losses, digits, iris, parzen, annealing)}[name](
        *(float(a) if a.replace(".", "").isdigit() else a for a in rest)
    )
