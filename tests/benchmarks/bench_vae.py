"""Variational autoencoders against the clock and on real images: python tests/benchmarks/bench_vae.py PART [...]

steps [rounds]      a step of stochastic variational inference on an unmodified Pyro program (written as Pyro's
                    example is), played back from its recorded graph, beside a hand-written torch step with Adam
                    and beside Pyro's own SVI; CPU time of one thread, interleaved, medians of neighbours' ratios
iwae [images]       IWAE-500 of images, 784-400-20, beside hand-written torch and Pyro's vectorised weights
certificate [rows]  annealing from the guide and back, on a VAE of Fashion-MNIST
fashion [seconds [seeds]]    binarised Fashion-MNIST: trained so many CPU-seconds, IWAE-500 of all 10k test images
grey [seconds [seeds]]       8-bit Fashion-MNIST, in bits/dim
digits              17 levels, beside the histogram of independent pixels
"""

import math
import statistics
import subprocess
import sys
import time

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import nn

import probgen as pg
from probgen.svi import NegativeELBO, Program, check_guide, look
from probgen.training import Player, Schedule, _Run

SIZES = {"64-32-2 batch 64": (64, 32, 2, 64), "784-400-20 batch 128": (784, 400, 20, 128)}


class Encoder(nn.Module):
    def __init__(self, cells, hidden, latent):
        super().__init__()
        self.body, self.loc, self.raw = nn.Linear(cells, hidden), nn.Linear(hidden, latent), nn.Linear(hidden, latent)

    def forward(self, x):
        h = nn.functional.softplus(self.body(x))
        return self.loc(h), self.raw(h).exp()


class Decoder(nn.Module):
    def __init__(self, cells, hidden, latent):
        super().__init__()
        self.body, self.last = nn.Linear(latent, hidden), nn.Linear(hidden, cells)

    def forward(self, z):
        return self.last(nn.functional.softplus(self.body(z)))


class Theirs(nn.Module):
    """A Pyro program as users write it."""

    def __init__(self, cells, hidden, latent):
        super().__init__()
        torch.manual_seed(0)
        self.latent, self.encoder, self.decoder = latent, Encoder(cells, hidden, latent), Decoder(cells, hidden, latent)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            loc = torch.zeros(x.shape[0], self.latent)
            z = pyro.sample("z", dist.Normal(loc, torch.ones_like(loc)).to_event(1))
            pyro.sample("x", dist.Bernoulli(torch.sigmoid(self.decoder(z)), validate_args=False).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, scale = self.encoder(x)
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))


def by_hand(sizes, x, rows, fused=False):
    """Torch alone: logits, analytic divergence, Adam."""
    net = Theirs(*sizes)
    adam = torch.optim.Adam(net.parameters(), lr=1e-3, fused=fused)

    def step():
        batch = x[rows()]
        adam.zero_grad()
        loc, scale = net.encoder(batch)
        logits = net.decoder(loc + scale * torch.randn_like(loc))
        loss = nn.functional.binary_cross_entropy_with_logits(logits, batch, reduction="sum")
        loss = loss - 0.5 * (1 + 2 * scale.log() - loc.square() - scale.square()).sum()
        loss = loss / len(batch)
        loss.backward()
        adam.step()
        return loss.item()

    return step


def by_pyro(sizes, x, rows):
    pyro.clear_param_store()
    net = Theirs(*sizes)
    svi = pyro.infer.SVI(net.model, net.guide, pyro.optim.Adam({"lr": 1e-3}), pyro.infer.Trace_ELBO())
    return lambda: svi.step(x[rows()])


def by_us(sizes, x, batch_size):
    """The step of the training loop (rows, play-back, clipping, fused Adam, schedule), and one without its extras."""
    net = Theirs(*sizes)
    program = Program(lambda x, given: net.model(x), lambda x, given: net.guide(x))
    generator = torch.Generator().manual_seed(0)
    structure = check_guide(program, look(program, x, None), x, None, generator=generator)
    loss = NegativeELBO(program, structure, len(x), lambda batch: (batch, None))
    loss.program_loss(x[:2], generator)
    plan = Schedule(steps=100_000, batch_size=batch_size, validation=0.0)
    player = Player(loss, list(program.parameters()))
    run = _Run(program, [player], len(x), generator, plan)

    def alone():
        """Loss, gradients, fused Adam: what the hand-written step does."""
        rows = torch.randint(len(x), (batch_size,))
        value = loss(x[rows], generator)
        slopes = torch.autograd.grad(value, player.parameters)
        for parameter, slope in zip(player.parameters, slopes, strict=True):
            parameter.grad = slope.contiguous()
        player.optimiser.step()
        return float(value.detach())

    return lambda: run.take_step(x), alone


def compare(name, rounds):
    *sizes, size = SIZES[name]
    x = (torch.rand(4096, sizes[0], generator=torch.Generator().manual_seed(1)) < 0.4).float()

    def rows():
        return torch.randint(len(x), (size,))

    ways = {
        "by hand, Adam": by_hand(sizes, x, rows),
        "by hand, fused Adam": by_hand(sizes, x, rows, True),
        "Pyro's SVI": by_pyro(sizes, x, rows),
    }
    ways["probgen's loop"], ways["probgen, a step"] = by_us(sizes, x, size)
    times = {way: [] for way in ways}
    for way in ways.values():
        way(), way()
    for _ in range(rounds):
        for way, step in ways.items():
            began = time.process_time()
            for _ in range(5):
                step()
            times[way].append((time.process_time() - began) / 5)
    print(name)
    for way, spent in times.items():
        ratio = statistics.median(a / b for a, b in zip(spent, times["by hand, Adam"], strict=True))
        print(f"  {way:20} {1e3 * statistics.median(spent):7.3f} ms a step, {ratio:.2f} times the hand-written")


def warm_up():
    """CPU seconds from a program to its second step, in a new process; imports of torch and Pyro are not counted."""
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); import torch, bench_vae as b; torch.set_num_threads(1);"
        "x = torch.rand(256, 784).round(); t = time.process_time(); s, _ = b.by_us((784, 400, 20), x, 128); s(); s();"
        "print(time.process_time() - t)"
    )
    done = subprocess.run([sys.executable, "-c", code, sys.path[0]], capture_output=True, text=True, check=True)
    print(f"warm-up: {float(done.stdout):.2f} CPU-s")


def steps(rounds=60):
    warm_up()
    for name in SIZES:
        compare(name, rounds)


# IWAE of many images


def iwae(images=2000):
    """Agreement first: with the same draws all three give the same numbers."""
    x = binarised()[1][:images]
    vae = pg.VAE(pg.events.Array((28, 28), levels=2), 20, (400,)).fit(binarised()[0][:20_000], steps=800, seed=0)
    rows = torch.tensor(x, dtype=torch.float32).reshape(len(x), -1)
    some = min(64, images)
    theirs = np.array([by_pyro_weights(vae, row[None]) for row in rows[:some]])
    ours, hand = vae.log_prob(x, by=pg.IWAE(500), seed=0).nats, by_hand_weights(vae, rows)
    for name, found in {"by hand": hand[:some], "Pyro": theirs}.items():
        z = (found - ours[:some]).mean() / ((found - ours[:some]).std() / math.sqrt(some))
        print(f"{name} less probgen: {(found - ours[:some]).mean():+.3f} nats, {z:+.1f} standard errors")
        assert abs(z) < 5
    ratios = {"probgen": [], "Pyro": []}
    for _ in range(5):
        hand = clock(lambda: by_hand_weights(vae, rows)) / len(x)
        ratios["probgen"].append(clock(lambda: vae.log_prob(x, by=pg.IWAE(500), seed=0)) / len(x) / hand)
        ratios["Pyro"].append(clock(lambda: [by_pyro_weights(vae, row[None]) for row in rows[:some]]) / some / hand)
    print(f"by hand: {1e3 * hand:.2f} CPU-ms an image of 500 draws")
    for name, found in ratios.items():
        print(f"{name}: {statistics.median(found):.2f} times the hand-written ({min(found):.2f} to {max(found):.2f})")


def clock(run):
    began = time.process_time()
    run()
    return time.process_time() - began


@torch.no_grad()
def by_hand_weights(vae, rows, samples=500, batch=20, chunk=50):
    """Batches and chunks that fit in the cache; logits by a product with the pixels."""
    parts = []
    for x in rows.split(batch):
        loc, scale = vae._posterior(x.double(), None)
        log_w = []
        for _ in range(samples // chunk):
            e = torch.randn(chunk, *loc.shape)
            z = loc + scale * e
            raw = vae.decoder.net(z) + vae.cells.start
            nats = torch.einsum("snd,nd->sn", raw, x) - nn.functional.softplus(raw).sum(-1)
            log_w.append(nats + 0.5 * (e.square() - z.square()).sum(-1) + scale.log().sum(-1))
        parts.append(torch.cat(log_w).logsumexp(0) - math.log(samples))
    return torch.cat(parts).double().numpy()


@torch.no_grad()
def by_pyro_weights(vae, x, samples=500):
    """Pyro's weights of one image: they are of the whole batch, so a batch is one image."""

    def model(x):
        with pyro.plate("rows", len(x)):
            loc = torch.zeros(len(x), vae.latent_dim)
            z = pyro.sample("z", dist.Normal(loc, torch.ones_like(loc)).to_event(1))
            logits = vae.decoder.net(z) + vae.cells.start
            pyro.sample("x", dist.Bernoulli(logits=logits, validate_args=False).to_event(1), obs=x)

    def guide(x):
        loc, scale = vae._posterior(x.double(), None)
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    with pyro.validation_enabled(False):
        log_w, *_ = pyro.infer.importance.vectorized_importance_weights(
            model, guide, x, num_samples=samples, max_plate_nesting=1
        )
    return float(log_w.logsumexp(0) - math.log(samples))


# Fashion-MNIST


def binarised():
    """Training and test images, each binarised once; the test with seed 1."""
    pixels = pg.datasets.load("fashion_mnist").x
    parts = zip((pixels[:60_000], pixels[60_000:]), (0, 1), strict=True)
    return [(np.random.default_rng(seed).random(part.shape) < part / 255.0).astype(int) for part, seed in parts]


FASHION = {"latent_dim": 32, "hidden": (256,), "channels": (32, 64)}


def trained(event, x, seconds, seed, **options):
    """A VAE trained for so many CPU-seconds: steps are timed first, and the training's own time is printed."""
    vae = pg.VAE(event, **FASHION)

    def cost(n):
        few = {name: value[:2000] for name, value in options.items() if isinstance(value, np.ndarray)}
        return clock(lambda: vae.fit(x[:2000], steps=n, seed=0, validation=0.0, **{**options, **few}))

    cost(2)
    share = (cost(21) - cost(1)) / 20  # with an evaluation a step, so that more steps fit in than it says
    vae = pg.VAE(event, **FASHION)
    spent = clock(lambda: vae.fit(x, steps=int(seconds / share), seed=seed, validation=0.02, patience=0, **options))
    print(f"seed {seed}: {vae.report.steps} steps in {spent:.0f} CPU-s", flush=True)
    return vae


def fashion(seconds=600, seeds=3):
    event, (x, test) = pg.events.Array((28, 28), levels=2), binarised()
    grey = pg.datasets.load("fashion_mnist").x[:60_000] / 255.0
    for seed in range(seeds):
        vae = trained(event, x, seconds, seed, redraw=grey)
        nats = vae.log_prob(test, by=pg.IWAE(500), seed=1).nats
        print(f"  IWAE-500 of {len(test)} test images {nats.mean():.2f} nats, of the first 500 {nats[:500].mean():.2f}")


def grey(seconds=600, seeds=1):
    pixels = pg.datasets.load("fashion_mnist")
    for seed in range(seeds):
        vae = trained(pixels.event, pixels.x[:60_000], seconds, seed)
        answer = vae.log_prob(pixels.x[60_000:62_000], by=pg.IWAE(100), seed=1)
        print(f"  IWAE-100 of 2000 test images: {answer.bits_per_dim()}")


def certificate(rows=50):
    event, (x, test) = pg.events.Array((28, 28), levels=2), binarised()
    vae = pg.VAE(event, 32, (512, 512)).fit(x, steps=4000, seed=0, validation=0.02, patience=0)
    for by in (pg.AIS(chains=8, temperatures=100), pg.AIS(chains=16, temperatures=100)):
        pg.bdmc(vae, rows=2, by=by, seed=0)
        began = time.process_time()
        gap = pg.bdmc(vae, rows=rows, by=by, seed=0)
        both = (time.process_time() - began) / rows
        alone = clock(lambda by=by: vae.log_prob(test[:rows], by=by, seed=0)) / rows
        print(f"{by}: {gap}\n  {both:.2f} CPU-s an image both ways, {alone:.2f} for the lower bound alone")


def digits():
    data = pg.datasets.load("digits")
    train, test = data.split(seed=0)
    vae = pg.VAE.for_event(data.event).fit(train, budget=60, seed=0)
    independent = pg.Independent(data.event).fit(train)
    for name, answer in {"VAE": vae.log_prob(test, seed=0), "pixels alone": independent.log_prob(test)}.items():
        print(f"{name:13} {answer.bits_per_dim()}  by {answer.by}")


PARTS = {f.__name__: f for f in (steps, iwae, certificate, fashion, grey, digits)}


def main(part="steps", *numbers):
    torch.set_num_threads(1)
    PARTS[part](*map(int, numbers))


if __name__ == "__main__":
    main(*sys.argv[1:])
