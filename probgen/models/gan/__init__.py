"""Generative adversarial networks."""

from probgen.models.gan.family import GAN
from probgen.models.gan.learning import _Discriminate as _Discriminate
from probgen.models.gan.learning import _Generate as _Generate
from probgen.models.gan.noisy import ObservedWithNoise, ParzenWarning

__all__ = ["GAN", "ObservedWithNoise", "ParzenWarning"]
