"""Code lengths of text in bits a byte: frozen or adapting as it reads, over declared windows."""

import copy
import math
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from probgen.errors import ParameterError
from probgen.events import Checked
from probgen.logprob.kinds import Kind, Summary
from probgen.models.language.scoring import Reading, Windows, masked, read, score
from probgen.models.language.texts import refuse_no_text
from probgen.nn import refuse_broken
from probgen.training.muon import Muon, halves_well

if TYPE_CHECKING:
    from probgen.models.language.family import LanguageModel

__all__ = ["bits_per_byte", "perplexity"]

_BLOCKS = 100  # of the standard error, at most


def bits_per_byte(
    model: "LanguageModel", checked: Checked, stride: int, adapting: bool, rate: float, block: int
) -> Summary:
    """See LanguageModel.bits_per_byte."""
    refuse_no_text(model, "Bits per byte")
    stride = _checked_stride(model, stride)
    reading = model._reading(model.alphabet.ids(checked.x))
    refuse_broken(model.network)
    if adapting:
        nats = _prequential(model, reading, stride, rate, block)
        by = f"prequential, {block} windows a step, window {model.window}, stride {stride}"
    else:
        nats = score(model.network, reading, Windows.of(reading, model.window, stride), model.alphabet)
        by = model._way(reading, stride)
    sizes = _sizes(model, reading)
    value = float(-nats.sum() / sizes.sum() / math.log(2))
    error = _block_error(-nats.numpy() / math.log(2), sizes, model.window)
    kind = Kind.UPPER if model._kind is Kind.LOWER else Kind.EXACT
    return Summary(value, "bits/byte", kind, len(checked), None, error, 0, by)


def perplexity(model: "LanguageModel", checked: Checked, per: Literal["token", "byte"], stride: int) -> Summary:
    """See LanguageModel.perplexity. The error is that of blocks, by the delta method."""
    if per not in ("token", "byte"):
        raise ParameterError(f"per={per!r}", "'token' or 'byte'")
    refuse_no_text(model, "Perplexity")
    stride = _checked_stride(model, stride)
    reading = model._reading(model.alphabet.ids(checked.x))
    refuse_broken(model.network)
    nats = score(model.network, reading, Windows.of(reading, model.window, stride), model.alphabet)
    sizes = _sizes(model, reading) if per == "byte" else np.ones(len(nats))
    value = math.exp(float(-nats.sum() / sizes.sum()))
    error = value * _block_error(-nats.numpy(), sizes, model.window)
    kind = Kind.UPPER if model._kind is Kind.LOWER and per == "byte" else Kind.EXACT
    return Summary(value, f"perplexity/{per}", kind, len(checked), None, error, 0, model._way(reading, stride))


def _checked_stride(model: "LanguageModel", stride: int) -> int:
    if isinstance(stride, bool) or not isinstance(stride, int) or not 0 <= stride <= model.window:
        raise ParameterError(f"stride={stride!r}", f"a whole number up to the window, {model.window}; 0 for its own")
    return stride or model.stride


def _sizes(model: "LanguageModel", reading: Reading) -> np.ndarray:
    """Bytes of each target, (total,): an end has none."""
    targets = reading.targets.numpy()
    end = targets == model.alphabet.size
    return np.where(end, 0, model.alphabet.bytes(np.where(end, 0, targets)))


def _block_error(bits: np.ndarray, sizes: np.ndarray, window: int) -> float:
    """Standard error of the ratio of totals from blocks of neighbours, at least a window long (Carlstein 1986)."""
    count = min(_BLOCKS, len(bits) // window)
    if count < 2:
        return math.nan
    edges = np.linspace(0, len(bits), count + 1).astype(int)[:-1]
    spent, bought = np.add.reduceat(bits, edges), np.add.reduceat(sizes, edges)
    left = spent - spent.sum() / bought.sum() * bought
    return float(left.std(ddof=1) / math.sqrt(count) / bought.mean())


def _prequential(model: "LanguageModel", reading: Reading, stride: int, rate: float, block: int) -> Tensor:
    """log p of every target under a copy that learns from each block of windows once it is scored (Dawid 1984)."""
    if not block >= 1 or not 0 < rate < math.inf:
        raise ParameterError(f"block={block!r}, learning_rate={rate!r}", "at least a window, and a rate above 0")
    network = copy.deepcopy(model.network)
    optimiser = Muon(network.matrices, network.tables, halves_well(network))
    nats = torch.zeros(len(reading.targets), dtype=torch.float64)
    windows = Windows.of(reading, model.window, stride)
    for begin in range(0, len(windows), block):
        some = windows[np.arange(begin, min(begin + block, len(windows)))]
        with torch.enable_grad():
            places, features = read(network, reading, some)
            logits = masked(network.head(features), model.alphabet.ends)
            found = logits.gather(1, reading.targets[places][:, None])[:, 0] - logits.logsumexp(1)
            (-found.mean()).backward()
        nats[places] = found.detach().double()
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    return nats
