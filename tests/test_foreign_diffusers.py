"""diffusers' models behind our verbs: a network whose data are normal is scored as the closed form says."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import probgen as pg
from probgen.errors import LikelihoodUnavailable, ParameterError, StoreError, StructureError
from probgen.estimate.ode import ProbabilityFlow
from probgen.events import Array
from probgen.foreign.diffusers import DiffusersModel
from probgen.logprob import Kind

S = 0.6  # standard deviation of the data


class Scheduler:
    def __init__(self, prediction="epsilon", steps=1000):
        self.config = SimpleNamespace(prediction_type=prediction, num_train_timesteps=steps)
        self.alphas_cumprod = torch.cumprod(1 - torch.linspace(1e-4, 0.02, steps), 0)


class UNet2DModel(nn.Module):
    """What the best network would predict of x ~ N(0, S^2 I), its time found as its own table says."""

    def __init__(self, prediction="epsilon", scale=1.0):
        super().__init__()
        self.config = SimpleNamespace(
            in_channels=1, out_channels=1, sample_size=(2, 2), num_class_embeds=None, class_embed_type=None
        )
        self.prediction, self.scale = prediction, nn.Parameter(torch.tensor(scale, dtype=torch.float64))
        self.angles = Scheduler().alphas_cumprod.double().sqrt().arccos()

    def forward(self, y, timestep):
        low = int(timestep[0])
        share = float(timestep[0]) - low
        high = min(low + 1, len(self.angles) - 1)
        a = float((1 - share) * self.angles[low] + share * self.angles[high])
        variance = math.cos(a) ** 2 * S**2 + math.sin(a) ** 2
        noise, data = math.sin(a) * y / variance, math.cos(a) * S**2 * y / variance
        found = {"epsilon": noise, "sample": data, "v_prediction": math.cos(a) * noise - math.sin(a) * data}
        return SimpleNamespace(sample=self.scale * found[self.prediction])


def model(prediction="epsilon", event=None, scale=1.0):
    return DiffusersModel(UNet2DModel(prediction, scale), Scheduler(prediction), event)


def truth(x):
    first = float(model().angles[0])
    return stats.norm(0, math.hypot(S, math.tan(first))).logpdf(x.reshape(len(x), -1)).sum(1)


X = np.random.default_rng(0).normal(0, S, (40, 1, 2, 2))


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_the_flow_of_a_normal_network_has_the_closed_form(prediction):
    answer = model(prediction).log_prob(X, by=ProbabilityFlow(trace="exact", tolerance=0.01), seed=0)
    np.testing.assert_allclose(answer.nats, truth(X), atol=5e-3)
    assert "N(0, 0.01^2)" in answer.target
    wrong = model(prediction, scale=0.9).log_prob(X, by=ProbabilityFlow(trace="exact", tolerance=0.01), seed=0)
    assert abs(wrong.nats - truth(X)).max() > 0.05  # the twin: a network a tenth off


def test_samples_of_the_flow_are_normal():
    drawn = model().sample(4000, seed=0)
    assert drawn.shape == (4000, 1, 2, 2)
    assert stats.kstest(drawn.reshape(-1), stats.norm(0, S).cdf).pvalue > 1e-6
    assert stats.kstest(1.1 * drawn.reshape(-1), stats.norm(0, S).cdf).pvalue < 1e-6
    assert "40 steps of ab2" in model().sample_target()


def test_integer_pixels_get_a_lower_bound_on_their_mass():
    coarse = model(event=Array((2, 2), levels=4))
    x = np.random.default_rng(1).integers(4, size=(10, 2, 2))
    answer = coarse.log_prob(x, by=ProbabilityFlow(trace="exact", tolerance=0.01, samples=8), seed=0)
    assert set(answer.kinds) == {Kind.LOWER}
    edges = (x[..., None] + [0, 1]) / 2 - 1
    mass = np.log(stats.norm(0, S).cdf(edges[..., 1]) - stats.norm(0, S).cdf(edges[..., 0])).sum((1, 2))
    assert (answer.nats < mass + 4 * answer.stderr + 0.05).all()
    assert (mass - answer.nats).mean() < 1.0
    drawn = coarse.sample(50, seed=0)
    assert drawn.min() >= 0
    assert drawn.max() <= 3


WRONG = {
    "classes": (lambda net, plan: setattr(net.config, "num_class_embeds", 10), "unconditional"),
    "learned variances": (lambda net, plan: setattr(net.config, "out_channels", 2), "Learned variances"),
    "another schedule": (lambda net, plan: delattr(plan, "alphas_cumprod"), "alphas_cumprod"),
    "another prediction": (lambda net, plan: setattr(plan.config, "prediction_type", "flow"), "flow"),
}


@pytest.mark.parametrize("case", WRONG)
def test_networks_without_a_probability_flow_are_refused(case):
    change, said = WRONG[case]
    net, plan = UNet2DModel(), Scheduler()
    change(net, plan)
    with pytest.raises(StructureError, match=said):
        DiffusersModel(net, plan)


def test_what_it_can_not_do_is_refused():
    wrapped = model()
    with pytest.raises(StructureError, match="diffusers"):
        wrapped.fit(X)
    with pytest.raises(LikelihoodUnavailable, match="flow"):
        wrapped.model(torch.as_tensor(X))
    with pytest.raises(ParameterError, match="sampler"):
        wrapped.sample(2, sampler="ddim")
    with pytest.raises(ParameterError, match="steps"):
        wrapped.sample(2, steps=0)
    with pytest.raises(StructureError, match="shape"):
        model(event=Array((3, 3)))
    with pytest.raises(StoreError, match="saved by name"):
        pg.save(wrapped, "nowhere")


def test_a_name_of_a_hub_is_refused_at_once():
    with pytest.raises(StructureError, match="not looked up"):
        pg.wrap("google/ddpm-cifar10-32")


# With the library itself


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: pip install 'probgen[diffusers]'")
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    place = tmp_path_factory.mktemp("pipeline")
    diffusers.DDPMPipeline(net, diffusers.DDPMScheduler(100)).save_pretrained(place)
    return place


def test_a_folder_is_read_scored_and_sampled(folder):
    wrapped = pg.wrap(folder, event=Array((8, 8), levels=256))
    x = np.random.default_rng(0).integers(256, size=(2, 8, 8))
    answer = wrapped.log_prob(x, by=ProbabilityFlow(trace="hutchinson", probes=2, steps=4, most=4, samples=2), seed=0)
    assert np.isfinite(answer.nats).all()
    assert wrapped.sample(2, seed=0, steps=3).shape == (2, 8, 8)
    assert wrapped.sample(2, seed=0, sampler="scheduler", steps=3).shape == (2, 8, 8)


def test_a_folder_of_another_pipeline_or_a_damaged_one_is_refused(folder, tmp_path):
    parts = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]}
    (tmp_path / "model_index.json").write_text(json.dumps(parts))
    with pytest.raises(StoreError, match="can't be read"):
        pg.wrap(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps({"unet": ["a", "b"], "vae": ["a", "b"]}))
    with pytest.raises(StructureError, match="alone"):
        pg.wrap(tmp_path)
