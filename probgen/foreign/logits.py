"""What a language model of another library is asked for: logits of tokens, and the tokens of texts."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from probgen.errors import ParameterError, StructureError

__all__ = [
    "LOGITS", "ids_of", "logits_of", "next_logits", "refuse_bad_weights", "refuse_looking_ahead", "spell", "vocabulary",
    "window_of",
]  # fmt: skip

LOGITS = 1 << 25  # numbers that a network gives out at a time
_WINDOWS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")


def takes(network: nn.Module, name: str) -> bool:
    return name in inspect.signature(network.forward).parameters


def _arguments(network: nn.Module, ids: Tensor, inside: Tensor, places: Tensor) -> dict[str, Tensor]:
    """What a network is called with; without positions, padding in front would shift a row's own."""
    device = next((weight.device for weight in network.parameters()), torch.device("cpu"))
    own = {"input_ids": ids, "attention_mask": inside.long()}
    if takes(network, "position_ids"):
        own["position_ids"] = places.expand(ids.shape)
    return {name: value.to(device) for name, value in own.items()}


def logits_of(network: nn.Module, ids: Tensor, inside: Tensor) -> Tensor:
    """(n, T, tokens) of ids (n, T), padded behind where ``inside`` is False."""
    extra = {"use_cache": False} if takes(network, "use_cache") else {}
    return network(**_arguments(network, ids, inside, torch.arange(ids.shape[1])), **extra).logits


def next_logits(network: nn.Module, ids: Tensor, state: Any) -> tuple[Tensor, Any]:
    """Logits (n, tokens) after ids (n, T), and the keys and values of them, where the network gives those out."""
    seen = 0 if state is None else ids.shape[1] - 1
    own = _arguments(network, ids[:, seen:], torch.ones_like(ids), torch.arange(seen, ids.shape[1]))
    cached = takes(network, "past_key_values") and takes(network, "use_cache")
    found = network(**own, **({"past_key_values": state, "use_cache": True} if cached else {}))
    return found.logits[:, -1], getattr(found, "past_key_values", None) if cached else None


def vocabulary(network: Any) -> int:
    return int(network.config.vocab_size)


def window_of(network: Any, window: int | None) -> int:
    known = [value for name in _WINDOWS if isinstance(value := getattr(network.config, name, None), int) and value > 0]
    if window is None and not known:
        raise StructureError(f"A {type(network).__name__} whose config names no window", "window=, in tokens")
    if window is None:
        return known[0]
    if isinstance(window, bool) or not isinstance(window, int) or not 2 <= window <= min([*known, 1 << 30]):
        raise ParameterError(f"window={window!r}", f"a whole number from 2 to {known[0] if known else 1 << 30}")
    return window


@torch.no_grad()
def refuse_looking_ahead(network: nn.Module, size: int) -> None:
    """Raises StructureError where a later token changes earlier logits."""
    ids = torch.arange(8).remainder(size).repeat(2, 1)
    ids[1, -1] = (ids[0, -1] + 1) % size
    logits = logits_of(network, ids, torch.ones_like(ids, dtype=torch.bool))
    noise = 100 * torch.finfo(logits.dtype).eps * float(logits.abs().max())
    if (logits[0, :-1] - logits[1, :-1]).abs().max() > noise:  # never of NaN, which scoring reports
        raise StructureError(
            f"A {type(network).__name__} that looks ahead: a later token changes earlier logits", "a causal model",
            "Set config.is_decoder, or wrap its masked form: ...ForMaskedLM",
        )  # fmt: skip


def refuse_bad_weights(network: nn.Module) -> None:
    bad = [name for name, weight in network.named_parameters() if not weight.isfinite().all()]
    raise ParameterError(
        f"The network gives NaN; weights that are not finite: {', '.join(bad[:3]) or 'none'}", "finite numbers",
        "Load the model again, in float32",
    )  # fmt: skip


# The tokenizer


def ids_of(tokenizer: Any, texts: Sequence[str], special: bool = False) -> list[list[int]]:
    """Tokens of each text, with those that the tokenizer puts around it where ``special``."""
    return [[int(i) for i in ids] for ids in tokenizer(list(texts), add_special_tokens=special)["input_ids"]]


def spell(tokenizer: Any, ids: Sequence[int]) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
