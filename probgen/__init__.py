"""How probable is this data under any generative model, and what kind of number is that?"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_NAMES = {
    "AIS": "probgen.estimate",
    "BayesianNetwork": "probgen.models.bayesnet",
    "Blend": "probgen.models.blend",
    "Compressor": "probgen.models.compressor",
    "Contrastive": "probgen.models.contrastive",
    "Diffusion": "probgen.models.diffusion",
    "ELBO": "probgen.estimate",
    "Embedding": "probgen.models.embedding",
    "Enumerate": "probgen.estimate",
    "Flow": "probgen.models.flow",
    "GAN": "probgen.models.gan",
    "GaussianCopula": "probgen.models.baseline",
    "HiddenMarkov": "probgen.models.hmm",
    "HMM": "probgen.models.hmm",
    "Independent": "probgen.models.baseline",
    "IWAE": "probgen.estimate",
    "KernelDensity": "probgen.models.kernel",
    "Kind": "probgen.logprob",
    "Ladder": "probgen.estimate",
    "LanguageModel": "probgen.models.language",
    "LikelihoodWeighting": "probgen.models.bayesnet",
    "LinearChainCRF": "probgen.models.crf",
    "LogProb": "probgen.logprob",
    "Loo": "probgen.evaluate.loo",
    "LoopyBP": "probgen.models.markovfield",
    "MarkovField": "probgen.models.markovfield",
    "MaskingBound": "probgen.models.textdiffusion",
    "Mixture": "probgen.models.mixture",
    "MultimodalVAE": "probgen.models.multimodal",
    "NGram": "probgen.models.ngram",
    "PartitionAIS": "probgen.models.markovfield",
    "PartitionReverseAIS": "probgen.models.markovfield",
    "PosteriorPredictive": "probgen.foreign.pyro.predictive",
    "PosteriorWeighting": "probgen.models.bayesnet",
    "ProbabilityFlow": "probgen.estimate",
    "PseudoLikelihood": "probgen.models.markovfield",
    "PyroProgram": "probgen.foreign.pyro",
    "RAISE": "probgen.models.markovfield",
    "Regression": "probgen.models.regression",
    "Scorer": "probgen.evaluate.sklearn",
    "Standardize": "probgen.models.standardize",
    "StateSpace": "probgen.models.statespace",
    "TextDiffusion": "probgen.models.textdiffusion",
    "TokenPath": "probgen.models.language",
    "TreeReweighted": "probgen.models.markovfield",
    "VAE": "probgen.models.vae",
    "VariationalBound": "probgen.models.diffusion",
    "anomalies": "probgen.evaluate.uses.anomalies",
    "augment": "probgen.evaluate.uses.augment",
    "augmentation_gain": "probgen.evaluate.twosample",
    "bdmc": "probgen.estimate",
    "check": "probgen.evaluate.checks",
    "codec": "probgen.evaluate.codec",
    "coherence": "probgen.evaluate.coherence",
    "compare": "probgen.evaluate.compare",
    "evidence": "probgen.estimate",
    "export": "probgen.foreign",
    "from_pretrained": "probgen.foreign",
    "impute": "probgen.evaluate.uses.impute",
    "load": "probgen.store",
    "log_joint": "probgen.estimate",
    "log_lik_given_latents": "probgen.estimate",
    "loo": "probgen.evaluate.loo",
    "memorisation": "probgen.evaluate.twosample",
    "pipeline_shift": "probgen.evaluate.pipelines",
    "pyro_pair": "probgen.model",
    "report": "probgen.evaluate.report",
    "reverse_ais": "probgen.estimate",
    "save": "probgen.store",
    "score_table": "probgen.evaluate.table",
    "stein": "probgen.evaluate.twosample",
    "to_arviz": "probgen.evaluate.arviz",
    "train_on_synthetic": "probgen.evaluate.twosample",
    "two_sample": "probgen.evaluate.twosample",
    "unscaled_score": "probgen.evaluate.pipelines",
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
    from probgen.evaluate.arviz import to_arviz as to_arviz
    from probgen.evaluate.checks import check as check
    from probgen.evaluate.codec import codec as codec
    from probgen.evaluate.coherence import coherence as coherence
    from probgen.evaluate.compare import compare as compare
    from probgen.evaluate.loo import Loo as Loo
    from probgen.evaluate.loo import loo as loo
    from probgen.evaluate.pipelines import pipeline_shift as pipeline_shift
    from probgen.evaluate.pipelines import unscaled_score as unscaled_score
    from probgen.evaluate.report import report as report
    from probgen.evaluate.sklearn import Scorer as Scorer
    from probgen.evaluate.table import score_table as score_table
    from probgen.evaluate.twosample import augmentation_gain as augmentation_gain
    from probgen.evaluate.twosample import memorisation as memorisation
    from probgen.evaluate.twosample import stein as stein
    from probgen.evaluate.twosample import train_on_synthetic as train_on_synthetic
    from probgen.evaluate.twosample import two_sample as two_sample
    from probgen.evaluate.uses.anomalies import anomalies as anomalies
    from probgen.evaluate.uses.augment import augment as augment
    from probgen.evaluate.uses.impute import impute as impute
    from probgen.foreign import export as export
    from probgen.foreign import from_pretrained as from_pretrained
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
    from probgen.models.blend import Blend as Blend
    from probgen.models.compressor import Compressor as Compressor
    from probgen.models.contrastive import Contrastive as Contrastive
    from probgen.models.crf import LinearChainCRF as LinearChainCRF
    from probgen.models.diffusion import Diffusion as Diffusion
    from probgen.models.diffusion import VariationalBound as VariationalBound
    from probgen.models.embedding import Embedding as Embedding
    from probgen.models.flow import Flow as Flow
    from probgen.models.gan import GAN as GAN
    from probgen.models.hmm import HMM as HMM
    from probgen.models.hmm import HiddenMarkov as HiddenMarkov
    from probgen.models.kernel import KernelDensity as KernelDensity
    from probgen.models.language import LanguageModel as LanguageModel
    from probgen.models.language import TokenPath as TokenPath
    from probgen.models.markovfield import RAISE as RAISE
    from probgen.models.markovfield import LoopyBP as LoopyBP
    from probgen.models.markovfield import MarkovField as MarkovField
    from probgen.models.markovfield import PartitionAIS as PartitionAIS
    from probgen.models.markovfield import PartitionReverseAIS as PartitionReverseAIS
    from probgen.models.markovfield import PseudoLikelihood as PseudoLikelihood
    from probgen.models.markovfield import TreeReweighted as TreeReweighted
    from probgen.models.mixture import Mixture as Mixture
    from probgen.models.multimodal import MultimodalVAE as MultimodalVAE
    from probgen.models.ngram import NGram as NGram
    from probgen.models.regression import Regression as Regression
    from probgen.models.standardize import Standardize as Standardize
    from probgen.models.statespace import StateSpace as StateSpace
    from probgen.models.textdiffusion import MaskingBound as MaskingBound
    from probgen.models.textdiffusion import TextDiffusion as TextDiffusion
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
