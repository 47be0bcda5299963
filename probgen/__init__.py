"""How probable is this data under any generative model, and what kind of number is that?"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_NAMES = {
    "AIS": "probgen.estimate",
    "BayesianNetwork": "probgen.models.bayesnet",
    "Diffusion": "probgen.models.diffusion",
    "ELBO": "probgen.estimate",
    "Enumerate": "probgen.estimate",
    "Flow": "probgen.models.flow",
    "GAN": "probgen.models.gan",
    "GaussianCopula": "probgen.models.baseline",
    "HMM": "probgen.models.hmm",
    "HiddenMarkov": "probgen.models.hmm",
    "IWAE": "probgen.estimate",
    "Independent": "probgen.models.baseline",
    "KernelDensity": "probgen.models.kernel",
    "Kind": "probgen.logprob",
    "Ladder": "probgen.estimate",
    "LikelihoodWeighting": "probgen.models.bayesnet",
    "LinearChainCRF": "probgen.models.crf",
    "LogProb": "probgen.logprob",
    "LoopyBP": "probgen.models.markovfield",
    "MarkovField": "probgen.models.markovfield",
    "Mixture": "probgen.models.mixture",
    "PartitionAIS": "probgen.models.markovfield",
    "PartitionReverseAIS": "probgen.models.markovfield",
    "PosteriorWeighting": "probgen.models.bayesnet",
    "PosteriorPredictive": "probgen.foreign.pyro.predictive",
    "ProbabilityFlow": "probgen.estimate",
    "PseudoLikelihood": "probgen.models.markovfield",
    "PyroProgram": "probgen.foreign.pyro",
    "RAISE": "probgen.models.markovfield",
    "Regression": "probgen.models.regression",
    "StateSpace": "probgen.models.statespace",
    "TreeReweighted": "probgen.models.markovfield",
    "VAE": "probgen.models.vae",
    "VariationalBound": "probgen.models.diffusion",
    "augmentation_gain": "probgen.evaluate.twosample",
    "bdmc": "probgen.estimate",
    "compare": "probgen.evaluate.compare",
    "evidence": "probgen.estimate",
    "export": "probgen.foreign",
    "load": "probgen.store",
    "log_joint": "probgen.estimate",
    "log_lik_given_latents": "probgen.estimate",
    "memorisation": "probgen.evaluate.twosample",
    "pyro_pair": "probgen.model",
    "reverse_ais": "probgen.estimate",
    "save": "probgen.store",
    "stein": "probgen.evaluate.twosample",
    "train_on_synthetic": "probgen.evaluate.twosample",
    "two_sample": "probgen.evaluate.twosample",
    "wrap": "probgen.foreign",
}
_ROOMS = {
    **{
        name: f"probgen.{name}"
        for name in (
            "conditionals", "datasets", "emissions", "errors", "estimate", "events", "foreign", "nn", "plots",
            "transitions",
        )
    },
    "scores": "probgen.evaluate.scores",
}  # fmt: skip

__all__ = [*_NAMES, *_ROOMS]

if TYPE_CHECKING:
    from probgen import conditionals as conditionals
    from probgen import datasets as datasets
    from probgen import emissions as emissions
    from probgen import errors as errors
    from probgen import estimate as estimate
    from probgen import events as events
    from probgen import foreign as foreign
    from probgen import nn as nn
    from probgen import plots as plots
    from probgen import transitions as transitions
    from probgen.estimate import AIS as AIS
    from probgen.estimate import ELBO as ELBO
    from probgen.estimate import IWAE as IWAE
    from probgen.estimate import Enumerate as Enumerate
    from probgen.estimate import Ladder as Ladder
    from probgen.estimate import ProbabilityFlow as ProbabilityFlow
    from probgen.estimate import bdmc as bdmc
    from probgen.estimate import evidence as evidence
    from probgen.estimate import log_joint as log_joint
    from probgen.estimate import log_lik_given_latents as log_lik_given_latents
    from probgen.estimate import reverse_ais as reverse_ais
    from probgen.evaluate import scores as scores
    from probgen.evaluate.compare import compare as compare
    from probgen.evaluate.twosample import augmentation_gain as augmentation_gain
    from probgen.evaluate.twosample import memorisation as memorisation
    from probgen.evaluate.twosample import stein as stein
    from probgen.evaluate.twosample import train_on_synthetic as train_on_synthetic
    from probgen.evaluate.twosample import two_sample as two_sample
    from probgen.foreign import export as export
    from probgen.foreign import wrap as wrap
    from probgen.foreign.pyro import PyroProgram as PyroProgram
    from probgen.foreign.pyro.predictive import PosteriorPredictive as PosteriorPredictive
    from probgen.logprob import Kind as Kind
    from probgen.logprob import LogProb as LogProb
    from probgen.model import pyro_pair as pyro_pair
    from probgen.models.baseline import GaussianCopula as GaussianCopula
    from probgen.models.baseline import Independent as Independent
    from probgen.models.bayesnet import BayesianNetwork as BayesianNetwork
    from probgen.models.bayesnet import LikelihoodWeighting as LikelihoodWeighting
    from probgen.models.bayesnet import PosteriorWeighting as PosteriorWeighting
    from probgen.models.crf import LinearChainCRF as LinearChainCRF
    from probgen.models.diffusion import Diffusion as Diffusion
    from probgen.models.diffusion import VariationalBound as VariationalBound
    from probgen.models.flow import Flow as Flow
    from probgen.models.gan import GAN as GAN
    from probgen.models.hmm import HMM as HMM
    from probgen.models.hmm import HiddenMarkov as HiddenMarkov
    from probgen.models.kernel import KernelDensity as KernelDensity
    from probgen.models.markovfield import RAISE as RAISE
    from probgen.models.markovfield import LoopyBP as LoopyBP
    from probgen.models.markovfield import MarkovField as MarkovField
    from probgen.models.markovfield import PartitionAIS as PartitionAIS
    from probgen.models.markovfield import PartitionReverseAIS as PartitionReverseAIS
    from probgen.models.markovfield import PseudoLikelihood as PseudoLikelihood
    from probgen.models.markovfield import TreeReweighted as TreeReweighted
    from probgen.models.mixture import Mixture as Mixture
    from probgen.models.regression import Regression as Regression
    from probgen.models.statespace import StateSpace as StateSpace
    from probgen.models.vae import VAE as VAE
    from probgen.store import load as load
    from probgen.store import save as save


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value = getattr(import_module(_NAMES[name]), name)
    elif name in _ROOMS:
        value = import_module(_ROOMS[name])
    elif name == "__version__":
        from importlib.metadata import version

        value = version("probgen")
    else:
        raise AttributeError(f"probgen has no {name!r}; it has: {', '.join(__all__)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
