"""Plain torch networks. They know nothing of probability, and draw no random numbers until ``reset``."""

from probgen.nn.convolutional import ConvDecoder, ConvEncoder
from probgen.nn.layers import MLP, Convolution, Linear, refuse_broken, reset
from probgen.nn.residual import AngleFeatures, ResidualMLP
from probgen.nn.transformer import Cache, Transformer
from probgen.nn.unet import UNet

__all__ = [
    "MLP", "AngleFeatures", "Cache", "ConvDecoder", "ConvEncoder", "Convolution", "Linear", "ResidualMLP",
    "Transformer", "UNet", "refuse_broken", "reset",
]  # fmt: skip
