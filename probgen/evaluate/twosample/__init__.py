"""Judging a model by its samples: two-sample tests, what samples are good for, whether they are copies."""

from probgen.evaluate.twosample.discrepancy import stein
from probgen.evaluate.twosample.findings import Effect, Finding, TwoSample
from probgen.evaluate.twosample.nearness import Memorisation, memorisation
from probgen.evaluate.twosample.rows import SampleWarning
from probgen.evaluate.twosample.suite import TESTS, two_sample
from probgen.evaluate.twosample.usefulness import Usefulness, augmentation_gain, train_on_synthetic

__all__ = [
    "TESTS", "Effect", "Finding", "Memorisation", "SampleWarning", "TwoSample", "Usefulness", "augmentation_gain",
    "memorisation", "stein", "train_on_synthetic", "two_sample",
]  # fmt: skip
