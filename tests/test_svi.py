"""Variational inference on somebody's program: Pyro's numbers under the same noise, played back from a graph."""

import copy
import math
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from torch import nn
from torch.distributions import constraints

from probgen.errors import FitError, StructureError
from probgen.model import pyro_lock
from probgen.svi import NegativeELBO, Program, check_guide, look, model_terms, record

D = torch.float64


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small matrices are slower on two threads, much slower beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class VAE(nn.Module):
    """After Pyro's first example: an encoder and a decoder that ``pyro.module`` registers."""

    def __init__(self, cells=6, hidden=5, latent=2):
        super().__init__()
        torch.manual_seed(0)
        self.latent = latent
        self.encoder = nn.Sequential(nn.Linear(cells, hidden), nn.Softplus(), nn.Linear(hidden, 2 * latent)).to(D)
        self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.Tanh(), nn.Linear(hidden, cells)).to(D)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            loc = torch.zeros(x.shape[0], self.latent, dtype=D)
            z = pyro.sample("z", dist.Normal(loc, torch.ones_like(loc)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, raw = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))


def tosses(n=12, cells=6):
    return (torch.rand(n, cells, generator=generator(1)) < 0.4).to(D)


class Clusters:
    """A mixture with shared means that have a prior, finite memberships, and a guide for the means only."""

    def model(self, x):
        weights = pyro.param("weights", lambda: torch.tensor([0.3, 0.7], dtype=D), constraint=constraints.simplex)
        with pyro.plate("clusters", 2):
            loc = pyro.sample("loc", dist.Normal(torch.zeros(2, dtype=D), 3.0))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(loc[k], 1.0), obs=x)

    def guide(self, x):
        centre = pyro.param("centre", lambda: torch.tensor([-1.0, 1.0], dtype=D))
        width = pyro.param("width", lambda: torch.tensor([0.3, 0.4], dtype=D), constraint=constraints.positive)
        with pyro.plate("clusters", 2):
            pyro.sample("loc", dist.Normal(centre, width))


def points(n=12):
    return torch.randn(n, generator=generator(2), dtype=D) * 2


def prepared(model, guide, x, rows=None, record=True):
    program = Program(lambda x, given: model(x), None if guide is None else lambda x, given: guide(x))
    structure = check_guide(program, look(program, x, None), x, None, generator=generator())
    return NegativeELBO(program, structure, rows or len(x), lambda batch: (batch, None), record)


def loss_and_slopes(loss, x, seed):
    """The loss at a seed, and the gradient of every registered parameter by its Pyro name."""
    value = loss(x, generator(seed))
    names, keys = zip(*loss.program.names.items(), strict=True)
    slopes = torch.autograd.grad(value, [loss.program.values[key] for key in keys], allow_unused=True)
    return value.detach(), dict(zip(names, slopes, strict=True))


def pyros(elbo, model, guide, x, seed, program):
    """Pyro's own loss and gradients with the same parameters and the same noise."""
    with program.running(generator(seed)):
        value = elbo.differentiable_loss(model, guide, x)
        names, keys = zip(*program.names.items(), strict=True)
        slopes = torch.autograd.grad(value, [program.values[key] for key in keys], allow_unused=True)
    return value.detach(), dict(zip(names, slopes, strict=True))


def near(ours, theirs, n):
    (a, slopes_a), (b, slopes_b) = ours, theirs
    same = [torch.allclose(n * slopes_a[name], slopes_b[name], rtol=1e-9, atol=1e-9) for name in slopes_b]
    return bool(torch.isclose(n * a, b, rtol=1e-10)) and len(same) > 2 and all(same)


# The same numbers as Pyro


@pytest.mark.parametrize("recorded", [True, False], ids=["played back", "step by step"])
def test_the_loss_and_its_gradient_are_those_of_trace_elbo_under_the_same_noise(recorded):
    vae, x = VAE(), tosses()
    loss = prepared(vae.model, vae.guide, x, record=recorded)
    ours = [loss_and_slopes(loss, x, seed) for seed in (5, 5, 6)][1:]
    assert len(loss.graphs) == recorded
    assert not loss.notes
    theirs = [pyros(Trace_ELBO(), vae.model, vae.guide, x, seed, loss.program) for seed in (5, 6)]
    assert near(ours[0], theirs[0], 12)
    assert near(ours[1], theirs[1], 12)
    assert not near(ours[0], theirs[1], 12)  # planted: other noise, and one plate member more
    assert not near(ours[0], theirs[0], 13)


@pytest.mark.parametrize("recorded", [True, False], ids=["played back", "step by step"])
def test_finite_latents_are_summed_out_as_trace_enum_elbo_does(recorded):
    clusters, x = Clusters(), points()
    loss = prepared(clusters.model, clusters.guide, x, record=recorded)
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    ours = [loss_and_slopes(loss, x, seed) for seed in (5, 5)][1]
    theirs = pyros(elbo, config_enumerate(clusters.model, "parallel"), clusters.guide, x, 5, loss.program)
    assert near(ours, theirs, 12)
    assert len(loss.graphs) == recorded


@pytest.mark.parametrize("by_pyro", [False, True], ids=["our sum", "Pyro's estimator"])
def test_a_batch_stands_for_all_rows(by_pyro):
    """Four rows out of forty are as good as all of them, where the forty are ten times the four."""
    clusters, x = Clusters(), points(4)
    loss = prepared(clusters.model, clusters.guide, x, rows=40)
    loss.structure = replace(loss.structure, plain=not by_pyro)
    ours = [loss_and_slopes(loss, x, 5) for _ in range(2)][1]
    whole = config_enumerate(clusters.model, "parallel"), clusters.guide, x.repeat(10)
    assert near(ours, pyros(TraceEnum_ELBO(max_plate_nesting=1), *whole, 5, loss.program), 40)
    loss = prepared(clusters.model, clusters.guide, x, rows=4)  # planted: as if there were no others
    ours = [loss_and_slopes(loss, x, 5) for _ in range(2)][1]
    assert not near(ours, pyros(TraceEnum_ELBO(max_plate_nesting=1), *whole, 5, loss.program), 40)


class Labelled:
    """Finite latents in the guide too: q(k | x), which Pyro's estimator weighs."""

    def model(self, x):
        loc = pyro.param("loc", lambda: torch.tensor([-1.0, 2.0], dtype=D))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.4, dtype=D)))
            pyro.sample("x", dist.Normal(loc[k.long()], 1.0), obs=x)

    def guide(self, x):
        slope = pyro.param("slope", lambda: torch.tensor(0.7, dtype=D))
        shift = pyro.param("shift", lambda: torch.tensor(0.1, dtype=D))
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Bernoulli(logits=slope * x + shift))


def test_finite_latents_of_the_guide_go_to_pyros_estimator():
    labelled, x = Labelled(), points()
    loss = prepared(labelled.model, labelled.guide, x)
    assert not loss.structure.plain
    ours = [loss_and_slopes(loss, x, 5) for _ in range(2)][1]
    pair = [config_enumerate(program, "parallel") for program in (labelled.model, labelled.guide)]
    theirs = pyros(TraceEnum_ELBO(max_plate_nesting=1), *pair, x, 5, loss.program)
    assert near(ours, theirs, 12)


def test_finite_latents_in_nested_plates_are_summed_out_row_by_row():
    """A document's topic and its words' own: p(x) = sum_t p(t) prod_w sum_k p(k | t) p(x_w | k), by hand."""
    topic, sub = torch.tensor([0.2, 0.8], dtype=D), torch.tensor([[0.9, 0.1], [0.3, 0.7]], dtype=D)
    words = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]], dtype=D)

    def model(x):
        with pyro.plate("documents", len(x), dim=-2):
            t = pyro.sample("t", dist.Categorical(topic))
            with pyro.plate("words", x.shape[1], dim=-1):
                k = pyro.sample("k", dist.Categorical(sub[t]))
                pyro.sample("x", dist.Categorical(words[k]), obs=x)

    x = torch.randint(3, (7, 4), generator=generator(3))
    program = Program(lambda x, given: model(x), None)
    structure = look(program, x, None)
    assert (structure.plate, structure.finite) == ("documents", ("t", "k"))
    with program.running():
        rows, _ = model_terms(program, structure, x, None, {})
    given_topic = (sub @ words)[:, x].log().sum(-1)  # (topics, documents)
    wanted = (topic.log()[:, None] + given_topic).logsumexp(0)
    torch.testing.assert_close(rows, wanted)
    assert not torch.allclose(rows, (topic @ sub @ words)[x].log().sum(-1))  # planted: a topic a word


# Recording


def test_a_graph_is_smaller_and_equal_to_the_bit_and_reads_parameters_in_place():
    vae, x = VAE(), tosses()
    loss, plain = prepared(vae.model, vae.guide, x), prepared(vae.model, vae.guide, x, record=False)
    for seed in range(3):
        (a, slopes), (b, wanted) = loss_and_slopes(loss, x, seed), loss_and_slopes(plain, x, seed)
        assert torch.equal(a, b)
        assert all(torch.equal(slopes[name], wanted[name]) for name in wanted)
        with torch.no_grad():
            for parameter in vae.parameters():
                parameter.add_(0.01)
    (graph, _), *_ = loss.graphs.values()
    assert 20 < len(graph) < 110


def test_recording_keeps_what_is_written_in_place_and_what_may_change():
    """Folding must not freeze buffers, nor what is written into, nor merge two draws."""
    buffer = torch.ones(3)

    def function(x):
        work = torch.zeros(3)
        work.add_(x)
        view = work.view(3, 1)
        view.mul_(2)
        return (work + buffer + torch.rand(3) - torch.rand(3), work.clone())

    with pyro_lock(generator()):
        graph = record(function, torch.ones(3), generator=generator())
    buffer.fill_(5.0)
    x = torch.tensor([1.0, 2.0, 3.0])
    with pyro_lock(generator(4)):
        wanted = function(x)
    found = graph(x, generator=generator(4))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(graph(x, generator=generator(4)), wanted, strict=True))


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.rand(3), lambda: torch.randn(3), lambda: torch.randint(9, (3,)) + 0.0,
        lambda: dist.Gamma(2.0, torch.ones(3)).sample(), lambda: dist.Dirichlet(torch.ones(3)).sample(),
        lambda: dist.Categorical(torch.ones(3, 4)).sample() + 0.0, lambda: dist.Bernoulli(torch.ones(3) / 2).sample(),
        lambda: dist.Poisson(torch.ones(3)).sample(), lambda: dist.Exponential(torch.ones(3)).sample(),
    ],
)  # fmt: skip
def test_every_kind_of_draw_comes_from_the_private_generator(draw):
    with pyro_lock(generator()), pyro.validation_enabled(False):
        graph = record(lambda x: (x + draw(),), torch.ones(3), generator=generator())
    with pyro_lock(generator(4)):
        wanted = 1 + draw()
    outside = torch.get_rng_state()
    assert torch.equal(graph(torch.ones(3), generator=generator(4))[0], wanted)
    assert torch.equal(torch.get_rng_state(), outside)
    assert not torch.equal(graph(torch.ones(3), generator=generator(5))[0], wanted)


def branching(x):
    shift = pyro.param("shift", lambda: torch.zeros((), dtype=D))
    spread = 2.0 if x.mean() > 0 else 1.0  # the path depends on the data
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(shift, spread), obs=x)


class Squared(torch.autograd.Function):
    """A square computed outside torch, as a compiled kernel does."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.from_numpy(x.detach().numpy() ** 2)

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad * ctx.saved_tensors[0]


def test_what_is_computed_outside_torch_is_not_taken_for_a_constant():
    with pytest.raises(StructureError, match=r"Tensor\.numpy"):
        record(lambda x: (Squared.apply(x),), torch.ones(3), generator=generator())


def test_a_path_that_depends_on_data_falls_back_and_says_so():
    x = points().abs()
    loss = prepared(branching, None, x)
    values = [float(loss(part, generator()).detach()) for part in (x, -x)]
    assert "step by step" in loss.notes[0]
    wanted = [-float(dist.Normal(torch.zeros((), dtype=D), s).log_prob(x).mean()) for s in (2.0, 1.0)]
    assert values == pytest.approx(wanted, rel=1e-12)


def test_a_program_whose_constants_change_is_found_out():
    calls = []

    def drifting(x):
        shift = pyro.param("shift", lambda: torch.zeros((), dtype=D))
        calls.append(0)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(shift + 0.1 * len(calls), 1.0), obs=x)

    x = points()
    loss = prepared(drifting, None, x)
    for _ in range(3):
        loss(x, generator())
    assert "change from step to step" in loss.notes[0]
    vae = VAE()
    steady = prepared(vae.model, vae.guide, tosses())
    for _ in range(9):
        steady(tosses(), generator())
    assert not steady.notes


def test_a_graph_is_made_for_each_shape():
    vae, x = VAE(), tosses()
    loss, plain = prepared(vae.model, vae.guide, x), prepared(vae.model, vae.guide, x, record=False)
    for part in (x, x[:5], x, x[:5]):
        assert torch.equal(loss(part, generator()), plain(part, generator()))
    assert len(loss.graphs) == 2


# Its own store


def test_nothing_outside_changes():
    pyro.clear_param_store()
    pyro.param("mine", torch.tensor(3.0))
    state, flags = torch.get_rng_state(), (pyro.infer.util.is_validation_enabled(), dist.is_validation_enabled())
    vae, clusters = VAE(), Clusters()
    torch.set_rng_state(state)  # building the networks draws
    for pair, x in ((vae, tosses()), (clusters, points())):
        loss = prepared(pair.model, pair.guide, x)
        for _ in range(3):
            loss(x, generator()).backward()
    names = list(pyro.get_param_store().keys())
    pyro.clear_param_store()
    assert names == ["mine"]
    assert torch.equal(torch.get_rng_state(), state)
    assert (pyro.infer.util.is_validation_enabled(), dist.is_validation_enabled()) == flags
    with pytest.raises(ValueError, match="scale"):
        dist.Normal(0.0, -1.0)


def test_two_programs_with_the_same_names_keep_apart():
    a, b = (prepared(Clusters().model, Clusters().guide, points()) for _ in range(2))
    a(points(), generator())
    b(points(), generator())
    with torch.no_grad():
        a.program.values["of:centre"].add_(5.0)
    assert float(b.program.constrained()["centre"][0]) == -1.0
    assert set(a.program.names) == {"weights", "centre", "width"}


def test_networks_that_are_not_registered_are_trained_too():
    net = nn.Linear(1, 1).to(D)

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(net(x[:, None] * 0 + 1)[:, 0], 1.0), obs=x)

    loss = prepared(model, None, points())
    slopes = torch.autograd.grad(loss(points(), generator()), list(loss.program.parameters()))
    assert len(loss.program.unregistered) == 2
    assert all(float(slope.abs().sum()) > 0 for slope in slopes)
    assert {id(p) for p in loss.program.parameters()} == {id(p) for p in net.parameters()}


def test_pyro_modules_are_registered_under_their_own_names():
    class Module(pyro.nn.PyroModule):
        def __init__(self):
            super().__init__()
            self.scale = pyro.nn.PyroParam(torch.tensor(2.0, dtype=D), constraint=constraints.positive)
            self.loc = nn.Parameter(torch.tensor(0.5, dtype=D))

        def forward(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(self.loc, self.scale), obs=x)

    module = Module()
    loss = prepared(module, None, points())
    value = loss(points(), generator())
    assert set(loss.program.names) == {"scale", "loc"}
    assert float(loss.program.constrained()["scale"]) == pytest.approx(2.0)
    assert float(value.detach()) == pytest.approx(-float(dist.Normal(0.5, 2.0).log_prob(points()).mean()))
    value.backward()
    assert module.loc.grad is not None
    assert "scale" not in pyro.get_param_store()


def test_deepcopy_keeps_methods_and_their_parameters_together():
    vae = VAE()
    loss = prepared(vae.model, vae.guide, tosses(), record=False)
    loss(tosses(), generator())
    twin = copy.deepcopy(loss.program.values)
    assert all(a is not b for a, b in zip(twin.parameters(), loss.program.values.parameters(), strict=True))


# Refusals


def refused(model, guide=None, x=None, **options):
    program = Program(lambda x, given: model(x), None if guide is None else lambda x, given: guide(x))
    x = points() if x is None else x
    with pytest.raises(StructureError) as problem:
        check_guide(program, look(program, x, None, **options), x, None, generator=generator())
    return str(problem.value)


def normal(name="x", plate="data", size=len, site=None, **options):
    def model(x):
        with pyro.plate(plate, size(x), **options):
            z = pyro.sample("z", site or dist.Normal(torch.zeros((), dtype=D), 1.0)) if site is not False else 0.0
            pyro.sample(name, dist.Normal(z, 1.0), obs=x[: size(x)])

    return model


def guided(name="z", plate="data", fn=None):
    def guide(x):
        with pyro.plate(plate, len(x)):
            pyro.sample(name, fn or dist.Normal(torch.zeros((), dtype=D), 1.0))

    return guide


def test_the_plate_of_the_rows_is_found_or_refused_by_name():
    assert look(Program(lambda x, given: normal(plate="rows")(x), None), points(), None).plate == "rows"
    assert "'data' of 3" in refused(normal(size=lambda x: 3))
    assert "estimate.evidence" in refused(lambda x: pyro.sample("x", dist.Normal(0.0, 1.0).expand([len(x)]), obs=x))
    assert "observes nothing" in refused(lambda x: pyro.sample("x", dist.Normal(0.0, 1.0)))
    assert "Did you mean 'data'" in refused(normal(), plate="dat")


def test_a_plate_that_takes_a_part_of_the_rows_is_refused():
    def model(x):
        with pyro.plate("data", len(x), subsample=torch.arange(2)) as some:
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x[some])

    text = refused(model)
    assert "'data' takes 2 of 6" in text
    assert "batch_size" in text


def test_a_loop_over_the_rows_is_refused():
    def model(x):
        for i in pyro.plate("data", len(x)):
            pyro.sample(f"x{i}", dist.Normal(0.0, 1.0), obs=x[i])

    assert "loop over the plate 'data'" in refused(model)


@pytest.mark.parametrize(
    ("guide", "wanted"),
    [
        (guided(plate="rows"), "'rows' (dim -1, size 6), the model's in 'data'"),
        (guided(name="zz"), "Did you mean 'z'"),
        (lambda x: None, "no site for the latent 'z'"),
        (guided(fn=dist.Gamma(2.0, 2.0)), "lives on GreaterThan"),
        (guided(fn=dist.Uniform(-1.0, 1.0)), "the same support"),
        (guided(fn=dist.Normal(torch.zeros(2), 1.0).to_event(1)), "has shape (6, 2), the model's (6,)"),
    ],
    ids=["plate", "name", "lacking", "support", "part of the support", "shape"],
)
def test_a_guide_that_does_not_fit_is_refused_by_site(guide, wanted):
    assert wanted in refused(normal(), guide)


def test_a_guide_that_fits_is_taken():
    program = Program(lambda x, given: normal()(x), lambda x, given: guided()(x))
    structure = check_guide(program, look(program, points(), None), points(), None, generator=generator())
    assert structure.amortised
    assert structure.plain


def test_latents_that_can_not_be_summed_are_refused_by_name():
    assert "'z' is Poisson" in refused(normal(site=dist.Poisson(torch.tensor(2.0))))

    def shared(x):
        k = pyro.sample("k", dist.Bernoulli(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    assert "'k' stands outside the plate 'data'" in refused(shared)


@pytest.mark.parametrize("recorded", [True, False], ids=["played back", "step by step"])
def test_a_loss_that_is_not_finite_names_the_site_or_the_parameter(recorded):
    clusters, x = Clusters(), points()
    loss = prepared(clusters.model, clusters.guide, x, record=recorded)
    loss(x, generator())
    x[3] = math.inf
    with pytest.raises(FitError, match="'x' of the model"):
        loss(x, generator())
    with torch.no_grad():
        loss.program.values["of:centre"].fill_(math.nan)
    with pytest.raises(FitError, match="parameter 'centre'"):
        loss(points(), generator())
