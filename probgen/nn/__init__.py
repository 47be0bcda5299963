"""Plain torch networks. They know nothing of probability, and draw no random numbers until ``reset``."""

from probgen.nn.convolutional import ConvDecoder, ConvEncoder
from probgen.nn.layers import MLP, Convolution, Linear, reset

__all__ = ["MLP", "ConvDecoder", "ConvEncoder", "Convolution", "Linear", "reset"]
