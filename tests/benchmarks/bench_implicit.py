"""Implicit models beside their peers: python tests/benchmarks/bench_implicit.py PART [...]

Agreement comes first in every part, then ratios of pairs. One thread, CPU time. The peers (torchdiffeq, flow-matching,
diffusers) are in no extra of ours: run it with a Python that has them.

oracle [png]             exact fields of a Gaussian (condition 98) and of eight normals: nats off against evaluations
samplers [seconds]       one trained net, 18 evaluations: RMS distance to its converged flow from the same noise, beside
                         DPM-Solver++ and UniPC of diffusers, the best of many schedules
step [pairs]             a training step beside the recipe of diffusers on the same net, the same clipping
toys [seconds [seeds [rows [names]]]]   KL to the truth and the integral, beside a mixture, a flow, a kernel estimate
gan [seconds]            eight gaussians, three seeds
clothes [family [seconds [png]]]   GAN or Diffusion on Fashion-MNIST: KID and C2ST on pixels, 500 held-out images
                         against 500 drawn, beside those of real images; a grid to look at
"""

import itertools
import math
import statistics
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

from probgen import datasets
from probgen.estimate.ode import ProbabilityFlow
from probgen.events import Array
from probgen.models.diffusion import Diffusion
from probgen.models.diffusion.learning import VelocityError
from probgen.models.diffusion.networks import Velocity
from probgen.models.diffusion.trig import END, flow_times, solve
from probgen.nn import reset
from probgen.training import Player, Schedule, _Run

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
D = torch.float64


class Straight(nn.Module):
    """A trigonometric field in the time of straight paths: x = s x1 + (1 - s) x0, data at s = 1. Counts its calls."""

    def __init__(self, field):
        super().__init__()
        self.field, self.calls = field, 0

    def forward(self, x, t, **_):
        self.calls += 1
        s = torch.as_tensor(t, dtype=x.dtype).reshape(-1).expand(len(x))
        square = s.square() + (1 - s).square()
        r, at = square.sqrt()[:, None], torch.atan2(1 - s, s)
        v = self.field._flow_velocity(x / r, at, None)
        return ((2 * s - 1) / square)[:, None] * x - v / r


class Trigonometric(nn.Module):
    """The field in our own time. Counts its calls."""

    def __init__(self, field):
        super().__init__()
        self.field, self.calls = field, 0

    def forward(self, x, t, **_):
        self.calls += 1
        return self.field._flow_velocity(x, torch.as_tensor(t, dtype=x.dtype).reshape(-1).expand(len(x)), None)


def traced(f):
    """(t, (x, log-density)) to its derivative, with the exact trace."""

    def both(t, state):
        x = state[0]
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            v = f(x, t)
            each = [torch.autograd.grad(v[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(x.shape[1])]
        return v.detach(), torch.stack(each).sum(0)

    return both


def normal(y):
    return -0.5 * (y.square() + math.log(2 * math.pi)).sum(1)


def by_torchdiffeq(field, x):
    from torchdiffeq import odeint

    for make, ends in ((Trigonometric, (0.0, END)), (Straight, (1.0, 0.0))):
        settings = [("dopri5", {"rtol": r, "atol": r}) for r in (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)]
        settings += [("rk4", {"options": {"step_size": abs(ends[1] - ends[0]) / k}}) for k in (8, 16, 24, 48, 96)]
        for method, options in settings:
            f, start = make(field), torch.zeros(len(x), dtype=D)
            y, total = odeint(traced(f), (x, start), torch.tensor(ends, dtype=D), method=method, **options)
            yield f"torchdiffeq {method} {make.__name__.lower()}", f.calls, normal(y[-1]) + total[-1]


def by_flow_matching(field, x):
    from flow_matching.solver import ODESolver

    settings = [("dopri5", None, r) for r in (1e-3, 1e-5, 1e-6, 1e-7, 1e-8)]
    settings += [(m, 1 / k, 1e-5) for m, ks in (("midpoint", (25, 50, 100)), ("rk4", (12, 24, 48))) for k in ks]
    for method, size, tolerance in settings:
        f = Straight(field)
        options = {"method": method, "step_size": size, "atol": tolerance, "rtol": tolerance, "exact_divergence": True}
        yield f"flow_matching {method}", f.calls, ODESolver(f).compute_likelihood(x, normal, **options)[1].detach(), f


def by_zuko(field, x):
    from zuko.transforms import FreeFormJacobianTransform

    for tolerance in (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8):
        f = Trigonometric(field)
        flow = FreeFormJacobianTransform(
            lambda t, y, f=f: f(y, t), torch.tensor(0.0, dtype=D), torch.tensor(END, dtype=D), atol=tolerance,
            rtol=tolerance, exact=True,
        )  # fmt: skip
        y, log_slope = flow.call_and_ladj(x)
        yield "zuko", f.calls, (normal(y) + log_slope).detach()


def ours(field, x):
    defaults = ProbabilityFlow()
    tried = [ProbabilityFlow(steps=k, most=k) for k in (4, 8, 16, 32, 64)]
    for name, by in (("ours, defaults", defaults), *(("ours", each) for each in tried)):
        answer = by(field, x, generator=torch.Generator().manual_seed(0))
        yield name, float(answer.diagnostics["evaluations"].mean()), torch.as_tensor(answer.nats)


def oracle(png="/tmp/oracle.png"):
    from test_ode import eight, gaussian

    found = {}
    for name, field in (("gaussian, condition 98", gaussian()), ("eight normals", eight())):
        x = field.rows(500, seed=1)
        truth = torch.tensor(field.nats(x.numpy()))
        best = ProbabilityFlow(steps=128, most=128)(field, x, generator=torch.Generator().manual_seed(0))
        print(
            f"{name}: the converged flow is within {abs(best.nats - truth.numpy()).max():.0e} nats of the closed form"
        )
        for who, calls, nats, *late in itertools.chain(
            ours(field, x), by_flow_matching(field, x), by_torchdiffeq(field, x), by_zuko(field, x)
        ):
            calls = late[0].calls if late else calls
            error = (nats - truth).abs()
            found.setdefault(name, {}).setdefault(who, []).append((calls, float(error.max())))
            print(f"  {who:38s} {calls:5.0f} evaluations: max {error.max():.1e}, mean {error.mean():.1e} nats")
    _plot(found, png)


def _plot(found, png):
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(12, 5), sharey=True, layout="constrained")
    for axis, (name, lines) in zip(axes, found.items(), strict=True):
        for who, points in lines.items():
            mine = who.startswith("ours")
            style = {"color": "black", "lw": 2.5, "zorder": 5} if mine else {"lw": 1, "alpha": 0.8}
            marker = "*" if who.endswith("defaults") else "o" if mine else "."
            axis.loglog(
                *zip(*sorted(points), strict=True), marker=marker, ms=16 if marker == "*" else 6, label=who, **style
            )
        axis.axhline(1e-4, color="grey", lw=0.5), axis.axvline(100, color="grey", lw=0.5)
        axis.set(title=name, xlabel="evaluations of the field (with trace)")
    axes[0].set_ylabel("largest error of 500 rows, nats")
    axes[1].legend(fontsize=8)
    figure.savefig(png, dpi=90)


def samplers(seconds=30.0, calls=18):
    calls = int(calls)
    data = datasets.eight_gaussians(100_000, seed=1)
    model, _, _ = fitted(lambda: Diffusion(data.event), data.x, seconds, 0, batch_size=512, learning_rate=3e-3)
    z = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        field = model._guided(None, None)
        truth = solve(field, z, flow_times(400), "rk4")
        finer = solve(field, z, flow_times(200), "rk4")
        peer = _peer(field, z, 1000, truth)
        print(f"converged to {rms(finer, truth):.0e}; DPM-Solver++ in 1000 steps is {peer:.1e} off")
        mine = {name: rms(solve(field, z, flow_times(calls // each), name), truth) for name, each in _CALLS.items()}
    began = time.process_time()
    report, spent = model.fit_sampler(calls, seed=1), time.process_time() - began
    with torch.no_grad():
        mine["fitted"] = rms(model.fitted(model._moving(None), z), truth)
        theirs = sorted(_peers(field, z, calls, truth), key=lambda found: found[0])
    print(f"fitted in {spent:.0f} CPU-s: {report}")
    print(f"{calls} evaluations: ours", ", ".join(f"{name} {off:.4f}" for name, off in mine.items()))
    for kind in ("DPM-Solver++", "UniPC"):
        own = [found for found in theirs if found[1].startswith(kind)]
        print(f"{kind}, best of {len(own)} schedules:")
        for off, what in own[:4]:
            print(f"  {off:.4f} ({off / mine['ab4']:.1f} times ab4, {off / mine['fitted']:.1f} times fitted) {what}")


_CALLS = {"ab2": 1, "ab4": 1, "heun": 2, "rk4": 4}


def rms(x, y):
    return float((x - y).square().sum(1).mean().sqrt())


def _peer(field, z, calls, truth):
    from diffusers import DPMSolverMultistepScheduler as Solver

    options = {"use_karras_sigmas": True, "prediction_type": "v_prediction", "euler_at_final": True}
    return rms(_run_peer(Solver(trained_betas=_betas(0.002, 2000), **options), field, z, calls), truth)


def _betas(low, high, n=1000):
    """Of a chain whose noise-to-signal ratios go from low to high at equal ratios."""
    alpha = 1 / (1 + np.geomspace(low, high, n) ** 2)
    return 1 - alpha / np.concatenate([[1.0], alpha[:-1]])


def _run_peer(scheduler, field, z, calls):
    scheduler.set_timesteps(calls)
    scheduler.set_begin_index(0)  # equal rounded timesteps must not shift the grid
    flow, y = scheduler.config.use_flow_sigmas, z.clone()
    for sigma, t in zip(scheduler.sigmas[:calls].tolist(), scheduler.timesteps, strict=True):
        at = math.atan2(sigma, 1 - sigma) if flow else math.atan(sigma)
        r = math.hypot(sigma, 1 - sigma) if flow else 1.0
        v = field(y / r, at)
        if flow:  # noise minus data
            v = (math.cos(at) + math.sin(at)) * v + (math.sin(at) - math.cos(at)) * y / r
        y = scheduler.step(v, t, y).prev_sample
    return y


def _peers(field, z, calls, truth):
    from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

    schedules = [
        {"trained_betas": _betas(low, high), f"use_{kind}_sigmas": True}
        for low in (0.002, 0.01, 0.03) for high in (20, 80) for kind in ("karras", "exponential", "beta")
    ]  # fmt: skip
    schedules += [
        {"trained_betas": _betas(low, 80), "timestep_spacing": space} for low in (0.002, 0.01) for space in _SPACINGS
    ]
    schedules += [{"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": space} for space in _SPACINGS]
    schedules += [{"use_flow_sigmas": True, "flow_shift": shift} for shift in (0.5, 1.0, 2.0, 3.0)]
    lu = [{"trained_betas": _betas(low, 80), "use_lu_lambdas": True} for low in (0.002, 0.01, 0.03)]
    own = [{"solver_type": kind, "euler_at_final": last} for kind in ("midpoint", "heun") for last in (False, True)]
    both = [("DPM-Solver++", DPMSolverMultistepScheduler, schedules + lu, [*own, {"solver_order": 3}])]
    kinds = [{"solver_order": k, "solver_type": kind} for k in (2, 3) for kind in ("bh1", "bh2")]
    both += [("UniPC", UniPCMultistepScheduler, schedules, kinds)]
    for name, make, plans, extras in both:
        for plan, extra, last in itertools.product(plans, extras, ("zero", "sigma_min")):
            kind = "flow_prediction" if "use_flow_sigmas" in plan else "v_prediction"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = _run_peer(make(**plan, **extra, prediction_type=kind, final_sigmas_type=last), field, z, calls)
            shown = {k: (f"{math.sqrt(v[0]):.3g}.." if k == "trained_betas" else v) for k, v in (plan | extra).items()}
            if found.isfinite().all():
                yield rms(found, truth), f"{name} {shown} final {last}"


_SPACINGS = ("linspace", "leading", "trailing")


def step(pairs=15):
    for name, event, batch, options in (
        ("2-D perceptron", Array((2,)), 128, {}),
        ("2-D perceptron", Array((2,)), 512, {}),
        ("28 x 28 U-net", Array((28, 28)), 32, {"channels": (32, 64), "blocks": 1}),
    ):
        x = torch.randn(4096, *event.shape, generator=torch.Generator().manual_seed(0), dtype=D)
        mine, theirs = _our_steps(event, x, batch, options), _their_steps(event, x, batch, options)
        for run in (mine, theirs):
            run(20 if len(event.shape) == 1 else 3)
        found, count = [], 60 if len(event.shape) == 1 else 3
        for i in range(int(pairs)):
            each = [0.0, 0.0]
            for k in (0, 1) if i % 2 else (1, 0):
                began = time.process_time()
                (mine, theirs)[k](count)
                each[k] = (time.process_time() - began) / count
            found.append(each)
        a, b = (statistics.median(column) for column in zip(*found, strict=True))
        ratios = sorted(u / v for u, v in found)
        low, middle, high = ratios[len(ratios) // 4], statistics.median(ratios), ratios[-len(ratios) // 4]
        print(
            f"{name}, batch {batch}: diffusers' recipe {1e3 * b:.2f} ms, ours {1e3 * a:.2f} ms; median ratio of "
            f"{len(ratios)} pairs {middle:.2f} (quartiles {low:.2f} to {high:.2f})",
            flush=True,
        )


def _our_steps(event, x, batch, options):
    model = Diffusion(event, **options)
    gen = torch.Generator().manual_seed(0)
    reset(model, gen)
    data = x.reshape(len(x), -1)
    model.rows.measure(data)
    player = Player(VelocityError(model, 1.5, 0.1), list(model.velocity.parameters()))
    run = _Run(
        model, [player], len(data), gen, Schedule(steps=10**6, batch_size=batch, clip=1.0, ema=0.995, validation=0.0)
    )

    def steps(count):
        for _ in range(count):
            if not math.isfinite(run.take_step(data)):
                raise RuntimeError("the loss is no number")

    return steps


def _their_steps(event, x, batch, options):
    """The training script of diffusers' own tutorial: noise, MSE of the noise, clipping, AdamW, EMA, cosine rate."""
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_cosine_schedule_with_warmup
    from diffusers.training_utils import EMAModel

    blocks = options.get("blocks", 3)
    net = Velocity(event, math.prod(event.shape), 0, (128,) * (2 * blocks), options.get("channels", ()), blocks)
    reset(net, torch.Generator().manual_seed(0))
    scheduler, one = DDPMScheduler(num_train_timesteps=1000), torch.ones(math.prod(event.shape), dtype=D)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3)
    rate, average = get_cosine_schedule_with_warmup(optimiser, 100, 10**6), EMAModel(net.parameters(), decay=0.995)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x.float().flatten(1)), batch, shuffle=True)
    rows = itertools.chain.from_iterable(itertools.repeat(loader))

    def steps(count):
        for (clean,) in itertools.islice(rows, count):
            noise, t = torch.randn_like(clean), torch.randint(0, 1000, (len(clean),))
            found = net(scheduler.add_noise(clean, noise, t), t / 1000 * END, one, None, None)
            loss = nn.functional.mse_loss(found, noise)
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step(), rate.step(), optimiser.zero_grad(), average.step(net.parameters())

    return steps


def fitted(make, x, seconds, seed, **options):
    """A model trained for so many CPU-seconds, by a pilot of two; steps; seconds spent."""

    def spent(steps):
        began = time.process_time()
        make().fit(x[:1000], steps=steps, seed=0, **options)
        return time.process_time() - began

    spent(2)
    few = spent(5)
    steps = max(2, int(0.93 * float(seconds) / ((spent(65) - few) / 60)))
    began = time.process_time()
    model = make().fit(x, steps=steps, seed=seed, **options)
    return model, steps, time.process_time() - began


def toys(seconds=60.0, seeds=3, rows=100_000, names="eight_gaussians,moons,checkerboard"):
    from probgen import Flow, KernelDensity, Mixture

    for name in names.split(","):
        make = getattr(datasets, name)
        for seed in range(int(seeds)):
            data, held = make(100_000, seed=1 + seed), make(int(rows), seed=1001 + seed)
            model, steps, spent = fitted(
                lambda data=data: Diffusion(data.event), data.x, seconds, seed, batch_size=512, learning_rate=3e-3
            )
            total, points = _integral(model)
            print(f"{name} seed {seed}: diffusion {_gap(model, held)}, integral {total:.4f} ({points} points); "
                  f"{steps} steps in {spent:.0f} CPU-s", flush=True)  # fmt: skip
            if seed:
                continue
            model, steps, spent = fitted(lambda data=data: Flow(data.event), data.x, seconds, seed, batch_size=512)
            print(f"  flow {_gap(model, held)}; {steps} steps in {spent:.0f} CPU-s", flush=True)
            for other in (Mixture(data.event, 8), KernelDensity(data.event)):
                began = time.process_time()
                other.fit(data.x[:20_000], seed=seed)
                print(
                    f"  {type(other).__name__} {_gap(other, held)}; {time.process_time() - began:.0f} CPU-s", flush=True
                )


def _nats(model, x, **options):
    return np.concatenate([model.log_prob(part, **options).nats for part in np.array_split(x, -(-len(x) // 5000))])


def _gap(model, held):
    gap = held.log_density(held.x) - _nats(model, held.x)
    return f"KL {gap.mean():.4f} (se {gap.std() / len(gap) ** 0.5:.4f}, {len(gap)} rows)"


def _integral(model, each=14, reach=4):
    """By Gauss and Legendre on unit squares: the edges of the checkerboard are edges of squares."""
    nodes, weights = np.polynomial.legendre.leggauss(each)
    points = (np.arange(-reach, reach)[:, None] + (nodes + 1) / 2).ravel()
    weights = np.tile(weights / 2, 2 * reach)
    both = np.stack(np.meshgrid(points, points, indexing="ij"), -1).reshape(-1, 2)
    return np.exp(_nats(model, both, by=ProbabilityFlow(tolerance=0.05))) @ np.outer(weights, weights).ravel(), len(
        both
    )


def clothes(family="GAN", seconds=600.0, png="/tmp/clothes.png", drawn=500):
    import probgen as pg

    data = datasets.load("fashion_mnist")
    train, test = data.split()
    began = time.process_time()
    model = getattr(pg, family).for_event(data.event).fit(train, budget=float(seconds), seed=0)
    print(f"{family}: {model.report.steps} steps in {time.process_time() - began:.0f} CPU-s", flush=True)
    x = model.sample(int(drawn), seed=1)
    pg.plots.samples({"held out": test[:64], family: x[:64]}, png)
    real, own, more = (
        np.asarray(part, dtype=float).reshape(len(part), -1) / 255 for part in (test[:500], x, test[500:1000])
    )
    for name, other in ((family, own), ("other real images", more)):
        print(name, pg.two_sample(real, other, tests=("kid", "c2st"), seed=0), flush=True)


def gan(seconds=60.0):
    from bench_gan import gaussians

    gaussians(float(seconds))


if __name__ == "__main__":
    torch.set_num_threads(1)
    parts = {f.__name__: f for f in (oracle, samplers, step, toys, gan, clothes)}
    if len(sys.argv) < 2 or sys.argv[1] not in parts:
        sys.exit(__doc__)
    with torch.no_grad() if sys.argv[1] == "oracle" else torch.enable_grad():
        parts[sys.argv[1]](*(float(a) if a.replace(".", "").isdigit() else a for a in sys.argv[2:]))
