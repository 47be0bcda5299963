# %% [markdown]
# # Your own Pyro program
#
# Somebody wrote a Pyro model and a guide. `wrap` gives the pair the three verbs, `fit`, `sample` and `log_prob`, and
# leaves the program and Pyro's parameter store as they are. Three programs: a VAE, eight schools, a mixture.
# Run it whole (`python tutorials/06_your_own_pyro_program.py`), or cell by cell; `--smoke` is quick.

# %%
import sys

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import nn
from torch.distributions import constraints

import probgen as pg

SMOKE = "--smoke" in sys.argv

# %% [markdown]
# ## A VAE
#
# The rows are the members of one plate; `wrap` finds it by tracing. The data are images of a stripe that turns
# from black to white somewhere, so one latent number is enough.


# %%
class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(16, 32), nn.Softplus(), nn.Linear(32, 2))
        self.decoder = nn.Sequential(nn.Linear(1, 32), nn.Softplus(), nn.Linear(32, 16))

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, raw = self.encoder(x).chunk(2, dim=-1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))


rng = np.random.default_rng(0)
turns = rng.normal(7.5, 4, (1200, 1))
stripes = (rng.random((1200, 16)) < 1 / (1 + np.exp(turns - np.arange(16)))).astype(int)

torch.manual_seed(0)
net = VAE()
vae = pg.wrap((net.model, net.guide), event=pg.events.Array((16,), levels=2))
vae.fit(stripes[:1000], steps=100 if SMOKE else 2000, seed=0)
print("ELBO, first and last:", vae.report.objective[0], vae.report.objective[-1])

# %% [markdown]
# Each row gets a lower bound on log p(x), with more draws where a pilot asks for them, and a standard error where one
# can be trusted. Pyro's own loss is a sum over the batch: there, a row's number can't be had.

# %%
bound = vae.log_prob(stripes[1000:], seed=0)
print(bound.mean())
print("the five least probable rows:", np.argsort(bound.nats)[:5] + 1000)
print("three samples:", *vae.sample(3, seed=0), sep="\n")
print("in Pyro's store:", list(pyro.get_param_store().keys()))

# %% [markdown]
# ## Eight schools: latents that all rows share
#
# Each school's measured effect is a row, its standard error a covariate (`given`). `mu` and `tau` are shared: what is
# asked for is log p(y | data), the posterior predictive, averaged over draws of their posterior. It is an estimate, and
# says so. Without a guide, `wrap` takes AutoNormal; `method="nuts"` draws from the posterior itself.


# %%
def schools(sigma, y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(sigma)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * eta, sigma), obs=y)


effect = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
error = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
eight = pg.wrap(
    schools, event=pg.events.Array(()), data="y",
    given="sigma", context=pg.events.Array((), support="positive"),
)  # fmt: skip
size = {"draws": 50, "warmup": 50} if SMOKE else {"draws": 1000, "warmup": 500}
eight.fit(effect, given=error, method="nuts", seed=0, **size)
print(eight.report.notes)
print({name: (draws.mean().round(2), draws.std().round(2)) for name, draws in eight.posterior().items()})
print(eight.log_prob(effect, given=error, seed=0))
print("a ninth school, measured with error 5:", eight.sample(3, given=[5.0], seed=0))

# %% [markdown]
# ## A mixture: exact
#
# A finite latent needs no guide. It is summed out, and the likelihood is exact.


# %%
def mixture(x):
    weights = pyro.param("weights", lambda: torch.ones(2) / 2, constraint=constraints.simplex)
    loc = pyro.param("loc", lambda: torch.tensor([-1.0, 1.0]))
    scale = pyro.param("scale", lambda: torch.ones(2), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[k], scale[k]), obs=x)


x = np.where(rng.random(500) < 0.3, rng.normal(-3, 1, 500), rng.normal(2, 0.5, 500))
two = pg.wrap(mixture, event=pg.events.Array(())).fit(x, steps=50 if SMOKE else 600, seed=0)
print(two.log_prob(x))
print({name: value.numpy().round(2) for name, value in two.program.constrained().items()})

# %% [markdown]
# ## What is refused
#
# Rows that no plate declares independent have one number together, not one each; a guide that stands in another
# plate would be silently wrong; a distribution for whole numbers does not score reals.


# %%
def chain(x):
    pyro.sample("x", dist.MultivariateNormal(torch.zeros(len(x)), torch.eye(len(x)) + 0.5), obs=x)


def other_plate(x):
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))


for pair, data in ((chain, x), ((net.model, other_plate), stripes)):
    event = pg.events.Array(data.shape[1:], levels=2 if data is stripes else None)
    try:
        pg.wrap(pair, event=event).fit(data, steps=2)
    except pg.errors.StructureError as refusal:
        print("refused:", refusal)
