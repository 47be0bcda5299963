"""Estimators of log p(x): one frozen dataclass each, ``estimator(model, x, given, generator=...) -> LogProb``.

Beside them: ``bdmc``, which measures how near AIS comes, ``reverse_ais``, its upper bound, ``evidence`` of programs
whose observations are no rows, and ``log_joint`` and ``log_lik_given_latents``, which are no likelihoods of x.
"""

from probgen.estimate.anneal import AIS
from probgen.estimate.anneal import reverse_ais as reverse_ais
from probgen.estimate.auto import Ladder
from probgen.estimate.bidirectional import Gap as Gap
from probgen.estimate.bidirectional import bdmc as bdmc
from probgen.estimate.bound import ELBO, IWAE
from probgen.estimate.enumerate import Enumerate
from probgen.estimate.joint import log_joint as log_joint
from probgen.estimate.joint import log_lik_given_latents as log_lik_given_latents
from probgen.estimate.ode import ProbabilityFlow
from probgen.estimate.program import evidence as evidence

__all__ = ["AIS", "ELBO", "IWAE", "Enumerate", "Ladder", "ProbabilityFlow"]  # what ``by=`` takes
