"""Variational autoencoders against the clock: python tests/benchmarks/bench_vae.py [rounds]

One step of stochastic variational inference on an unmodified Pyro program (written as Pyro's example is), played back
from its recorded graph, beside a hand-written torch step with Adam and beside Pyro's own SVI. CPU time of one thread,
interleaved; the figure is the median of the ratios of neighbours in time.
"""

import statistics
import subprocess
import sys
import time

import pyro
import pyro.distributions as dist
import torch
from torch import nn

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


def main(rounds=60):
    torch.set_num_threads(1)
    warm_up()
    for name in SIZES:
        compare(name, rounds)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
