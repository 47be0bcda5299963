"""Log-likelihoods that know what kind of number they are, and the arithmetic that keeps them honest."""

from probgen.logprob.fingerprint import Fingerprint
from probgen.logprob.kinds import Kind, Summary
from probgen.logprob.logprob import LogProb

__all__ = ["Fingerprint", "Kind", "LogProb", "Summary"]
