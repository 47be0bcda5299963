"""Diffusion models among themselves: python tests/benchmarks/bench_diffusion.py PART [...]

oracle              the true field of a Gaussian (condition 98) and of eight normals: nats off against evaluations
certified [rows]    the same at default settings and others: false certificates, the worst certified row, the figure
samplers [seconds]  a trained field of eight normals: root mean square distance to its converged flow from one noise
toys [seconds [seeds]]       KL to the truth, integral, both likelihoods
digits [seconds]    17 levels: the variational bound in bits/dim beside the histogram of independent pixels
fashion [seconds [png]]  8-bit Fashion-MNIST (needs its Debian package): bits/dim, steps, a grid of samples
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch

from probgen import datasets, plots
from probgen.estimate.ode import ProbabilityFlow
from probgen.models.baseline import Independent
from probgen.models.diffusion import Diffusion, VariationalBound
from probgen.models.diffusion.trig import flow_times, solve

sys.path.insert(0, str(Path(__file__).parents[1]))


def oracle():
    from test_ode import eight, gaussian

    for name, field in (("gaussian", gaussian()), ("eight", eight())):
        x = field.rows(500, seed=1)
        truth = field.nats(x.numpy())
        for solver in ("rk4", "heun"):
            for steps in (8, 16, 32, 64):
                by = ProbabilityFlow(steps=steps, most=steps, solver=solver)
                with torch.no_grad():
                    answer = by(field, x, generator=torch.Generator().manual_seed(0))
                error, calls = abs(answer.nats - truth), answer.diagnostics["evaluations"].mean()
                covered = (error <= answer.diagnostics["solver_error"] + 1e-9).mean()
                print(
                    f"{name:9s} {solver:5s} {calls:4.0f} calls: max {error.max():.1e} mean {error.mean():.1e} nats; "
                    f"covered {covered:.3f}"
                )


def certified(rows=20_000):
    from test_ode import eight, gaussian

    settings = ({}, {"tolerance": 1e-1}, {"tolerance": 1e-3}, {"steps": 4}, {"solver": "heun"})
    for name, field in (("gaussian", gaussian()), ("eight", eight())):
        x = field.rows(int(rows), seed=11)
        for options in settings:
            by = ProbabilityFlow(**options)
            with torch.no_grad():
                answer = by(field, x, generator=torch.Generator().manual_seed(0))
            error, sure = abs(answer.nats - field.nats(x.numpy())), answer.kinds == "exact"
            figure, calls = answer.diagnostics["solver_error"], answer.diagnostics["evaluations"]
            print(
                f"{name:9s} {by!r}: {sure.mean():.4f} certified, {(error[sure] > by.tolerance).sum()} of them falsely, "
                f"worst {error[sure].max():.1e}; error at most {(error / figure).max():.2f} of the figure; "
                f"{(calls <= 100).mean():.4f} within 100 calls, mean {calls.mean():.0f}"
            )


def samplers(seconds=30.0):
    data = datasets.eight_gaussians(100_000, seed=1)
    model = Diffusion(data.event).fit(data.x, budget=float(seconds), seed=0)
    z = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        field = model._guided(None, None)
        truth = solve(field, z, flow_times(400), "rk4")
        for calls in (10, 18, 36):
            row = []
            for name, each in (("ab2", 1), ("heun", 2), ("rk4", 4)):
                off = (solve(field, z, flow_times(max(2, calls // each)), name) - truth).square().sum(1).mean().sqrt()
                row.append(f"{name} {float(off):.4f}")
            print(f"{calls} calls:", ", ".join(row))


def toys(seconds=60.0, seeds=1):
    for name in ("eight_gaussians", "moons", "checkerboard"):
        make = getattr(datasets, name)
        for seed in range(int(seeds)):
            data, held = make(100_000, seed=1 + seed), make(2000, seed=1001 + seed)
            began = time.process_time()
            model = Diffusion(data.event).fit(
                data.x, budget=float(seconds), seed=seed, batch_size=512, learning_rate=3e-3
            )
            spent, truth = time.process_time() - began, held.log_density(held.x)
            gap = truth - model.log_prob(held.x).nats
            bound = truth - model.log_prob(held.x, by=VariationalBound(16), seed=0).nats
            side = (np.arange(60) + 0.5) / 60 * 7 - 3.5
            points = np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)
            total = np.exp(model.log_prob(points, by=ProbabilityFlow(tolerance=0.05)).nats).sum() * (7 / 60) ** 2
            print(
                f"{name} seed {seed}: {spent:.0f} CPU-s, {model.report.steps} steps; KL {gap.mean():.4f} "
                f"(se {gap.std() / len(gap) ** 0.5:.4f}), bound {bound.mean():.4f} below, integral {total:.4f}"
            )


def digits(seconds=60.0):
    data = datasets.digits()
    train, test = data.split()
    began = time.process_time()
    model = Diffusion.for_event(data.event).fit(train, budget=float(seconds), seed=0)
    print(f"{model.report.steps} steps, {time.process_time() - began:.0f} CPU-s", flush=True)
    print("diffusion", model.log_prob(test, by=VariationalBound(4), seed=0).bits_per_dim(), flush=True)
    print("independent", Independent.for_event(data.event).fit(train).log_prob(test).bits_per_dim())


def fashion(seconds=600.0, path="fashion.png"):
    data = datasets.fashion_mnist()
    train, test = data.split(1 / 7)
    model = Diffusion.for_event(data.event).fit(train, budget=float(seconds), seed=0)
    print(model.report.steps, "steps;", model.log_prob(test[:500], seed=0).bits_per_dim())
    plots.samples({"data": test[:64], "diffusion": model.sample(64, seed=0)}, str(path))


if __name__ == "__main__":
    torch.set_num_threads(1)
    parts = {
        "oracle": oracle,
        "certified": certified,
        "samplers": samplers,
        "toys": toys,
        "digits": digits,
        "fashion": fashion,
    }
    if len(sys.argv) < 2 or sys.argv[1] not in parts:
        sys.exit(__doc__)
    parts[sys.argv[1]](*sys.argv[2:])
