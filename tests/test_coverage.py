"""Printed Monte Carlo errors cover the truth, over guides wrong in several ways, and are printed often enough."""

import itertools
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from latents import ALPHA, PPCA, Folded, generator
from scipy import stats

from probgen.estimate import AIS, IWAE, Ladder, anneal, auto, bound

NOMINAL = 0.935  # coverage of 1.96 errors that is rejected from below, at ALPHA


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small matrices are slower on two threads, much slower beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


GUIDES = {
    "exact": PPCA(),
    "narrow 0.75": PPCA(width=0.75),
    "narrow 0.4": PPCA(width=0.4),
    "wide 1.5": PPCA(width=1.5),
    "wide 2.5": PPCA(width=2.5),
    "shifted 0.5": PPCA(shift=0.5),
    "shifted 2.5": PPCA(shift=2.5),
    "narrow 0.7, shifted 0.5": PPCA(width=0.7, shift=0.5),
    "wide 1.3, shifted 1": PPCA(width=1.3, shift=1.0),
    "mode missing": Folded(),
    "uneven mode missing": Folded(tilt=0.3),
    "rough, mode missing": Folded(noise=0.8),
}
ESTIMATORS = {
    "IWAE": IWAE(1000),
    "IWAE, widened": IWAE(1000, widen=True),
    "IWAE, refined": IWAE(1000, refine=True),
    "AIS": AIS(16, 20),
    "AIS, prior": AIS(16, 40, start="prior"),
    "Ladder": Ladder(),
}
FLOORS = {  # share of rows that get an error, at least
    ("exact", "IWAE"): 0.99,
    ("exact", "AIS"): 0.99,
    ("exact", "Ladder"): 0.99,
    ("narrow 0.75", "Ladder"): 0.99,
    ("narrow 0.4", "Ladder"): 0.99,
    ("narrow 0.4", "AIS"): 0.9,
    ("wide 1.5", "IWAE"): 0.5,
    ("wide 2.5", "Ladder"): 0.99,
    ("shifted 0.5", "IWAE, widened"): 0.5,
    ("shifted 2.5", "Ladder"): 0.99,
    ("shifted 2.5", "IWAE, refined"): 0.99,
    ("wide 1.3, shifted 1", "AIS"): 0.1,
    ("mode missing", "Ladder"): 0.5,
    ("uneven mode missing", "Ladder"): 0.5,
}


def cell(guide, by, n, seed=0):
    """Hits among the printed, and the answer."""
    model, x = GUIDES[guide], GUIDES[guide].draw(n, seed=1000 + seed)
    answer = by(model, x, generator=generator(seed))
    printed = np.isfinite(answer.stderr)
    hit = abs(answer.nats - model.exact(x)) <= 1.96 * answer.stderr + 1e-9
    return hit[printed], answer


def p_value(hit):
    """Of coverage as low as this, were it NOMINAL."""
    return stats.binom.cdf(hit.sum(), len(hit), NOMINAL)


@pytest.mark.parametrize("name", ["IWAE", "IWAE, refined", "AIS", "Ladder"])
def test_printed_errors_cover_over_a_grid_of_guides(name):
    pooled = []
    for i, guide in enumerate(GUIDES):
        hit, answer = cell(guide, ESTIMATORS[name], 200, seed=i)
        share = len(hit) / len(answer)
        assert share >= FLOORS.get((guide, name), 0.0), (
            f"{guide}: an error was printed for {share:.0%} of the rows only"
        )
        assert p_value(hit) > ALPHA, f"{guide}: {hit.mean():.3f} of {len(hit)} are covered"
        pooled.append(hit)
    assert p_value(np.concatenate(pooled)) > ALPHA


@pytest.fixture
def gate_always_open(monkeypatch):
    def opened(judge):
        def verdict(*args, **options):
            said = judge(*args, **options)
            return said._replace(trusted=torch.ones_like(said.trusted), missed=torch.zeros_like(said.missed))

        return verdict

    monkeypatch.setattr(bound, "judge", opened(bound.judge))
    monkeypatch.setattr(auto, "judge", opened(auto.judge))
    monkeypatch.setattr(anneal, "judge_crossing", opened(anneal.judge_crossing))


REJECTED = [
    ("narrow 0.4", "IWAE"),
    ("shifted 2.5", "IWAE"),
    ("mode missing", "IWAE"),
    ("mode missing", "IWAE, widened"),
    ("mode missing", "AIS"),
    ("mode missing", "Ladder"),
    ("shifted 2.5", "Ladder"),
]


@pytest.mark.parametrize(("guide", "name"), REJECTED)
def test_a_gate_that_is_always_open_would_be_seen(gate_always_open, guide, name):
    hit, answer = cell(guide, ESTIMATORS[name], 400)
    assert len(hit) == len(answer)
    assert p_value(hit) < ALPHA


@pytest.mark.parametrize("name", ["IWAE", "AIS", "Ladder"])
def test_errors_of_half_the_size_would_be_seen(name):
    hits = []
    for i, guide in enumerate(["narrow 0.75", "wide 1.5", "shifted 0.5"]):
        model, x = GUIDES[guide], GUIDES[guide].draw(250, seed=i)
        answer = ESTIMATORS[name](model, x, generator=generator(i))
        hits.append((abs(answer.nats - model.exact(x)) <= 0.98 * answer.stderr)[np.isfinite(answer.stderr)])
    assert p_value(np.concatenate(hits)) < ALPHA


@pytest.mark.long
def test_coverage_on_the_large_grid(capsys):
    failures = []
    with capsys.disabled():
        sys.stdout.write(f"\n{'guide':24} {'estimator':14}  printed  covered rows by draws\n")
        for (i, guide), (j, name) in itertools.product(enumerate(GUIDES), enumerate(ESTIMATORS)):
            hit, answer = cell(guide, ESTIMATORS[name], 10_000, seed=10_000 + 100 * i + j)
            failures += [(guide, name)] if p_value(hit) <= ALPHA else []
            used = Counter(
                zip(*(answer.diagnostics[k].astype(int) for k in USED if k in answer.diagnostics), strict=True)
            )
            covered = f"{hit.mean():.4f}" if len(hit) else "-"
            sys.stdout.write(f"{guide:24} {name:14} {len(hit) / len(answer):8.3f} {covered:>8} {used_by(used)}\n")
            sys.stdout.flush()
    assert not failures


USED = ("samples", "temperatures", "refined")


def used_by(counts):
    parts = []
    for (samples, *more), rows in sorted(counts.items(), key=lambda item: -item[1]):
        temperatures, refined = (*more, 1, 0)[:2] if more else (1, 0)
        name = f"{samples}x{temperatures}" if temperatures > 1 else f"{samples}"
        parts.append(f"{name}{'r' if refined and temperatures == 1 else ''}: {rows}")
    return ", ".join(parts)
