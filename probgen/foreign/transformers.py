"""The door to transformers: language models of that library, with likelihoods that say what they are of."""

import math
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from probgen.errors import LikelihoodUnavailable, MissingExtra, ParameterError, StoreError, StructureError
from probgen.events import Event, Ragged, Text
from probgen.foreign.causal import CausalLM
from probgen.foreign.logits import LOGITS, ids_of, logits_of, vocabulary, window_of
from probgen.logprob import Kind, LogProb
from probgen.model import FitReport, GenerativeModel

__all__ = ["CausalLM", "MaskedLM", "read", "wrap"]


class MaskedLM(GenerativeModel):
    """A masked language model of transformers: no distribution over texts, so its numbers are scores.

    ``log_prob`` is the pseudo-log-likelihood: the sum over tokens of log p(token | all others), SCORE. A text longer
    than the window has none.

    Arguments:
        network, tokenizer, window: As of CausalLM; the tokenizer needs a mask token.

    Salazar et al. (2020); Wang and Cho (2019).
    """

    def __init__(self, network: nn.Module, tokenizer: Any, window: int | None = None) -> None:
        super().__init__(Text())
        if getattr(tokenizer, "mask_token_id", None) is None:
            raise StructureError("A masked model whose tokenizer has no mask token", "tokenizer.mask_token")
        self.network, self.tokenizer = network.eval().requires_grad_(False), tokenizer
        self.window = window_of(network, window)
        self.report, self.form = FitReport((), 0, "imported"), "list"
        self.eval()

    @classmethod
    def suits(cls, event: Event) -> str | None:
        return CausalLM.suits(event)

    @classmethod
    def for_event(cls, event: Event, **options: Any) -> Self:
        raise StructureError("A transformers model for an event", "a trained one", "probgen.from_pretrained(folder)")

    def __repr__(self) -> str:
        return f"MaskedLM({type(self.network).__name__}, window={self.window})"

    def model(self, x: Any = None, given: Any = None, n: int = 1) -> Any:
        raise LikelihoodUnavailable("a masked model is no distribution over texts", "log_prob(x), a score")

    def _fit(self, x: Any, given: None, *, generator: torch.Generator) -> FitReport:
        raise StructureError("fit of a transformers model", "training by transformers", "Or fit a TextDiffusion")

    def _sample(self, n: int, given: None, *, generator: torch.Generator) -> Any:
        raise StructureError("Samples of a masked model", "a causal one: it is no distribution", "Wrap a causal model")

    def _log_prob(self, x: Ragged, given: None, *, generator: torch.Generator) -> LogProb:
        whole = ids_of(self.tokenizer, self.event.restore(x, "list"), special=True)
        fits = np.array([len(ids) <= self.window for ids in whole])
        nats = [self._score(ids, fit) for ids, fit in zip(whole, fits, strict=True)]
        kinds = np.where(fits, Kind.SCORE, Kind.UNAVAILABLE).astype(object)
        about: dict[str, Any] = {"reason": f"longer than the window, {self.window} tokens", "instead": "shorter texts"}
        by = "pseudo-log-likelihood"
        return LogProb(kinds, np.array(nats), by=by, target="p(x_t | rest)", **({} if fits.all() else about))

    def _score(self, ids: list[int], fits: bool) -> float:
        """The sum over tokens that are no special ones; each is masked in a copy of its own."""
        if not fits:
            return math.nan
        special = set(self.tokenizer.all_special_ids)
        places = torch.tensor([i for i, token in enumerate(ids) if token not in special], dtype=torch.int64)
        most, total = max(1, LOGITS // (vocabulary(self.network) * len(ids))), 0.0
        for some in places.split(most):
            copies, row = torch.tensor([ids]).repeat(len(some), 1), torch.arange(len(some))
            targets = copies[row, some]
            copies[row, some] = self.tokenizer.mask_token_id
            logits = logits_of(self.network, copies, torch.ones_like(copies, dtype=torch.bool)).cpu()[row, some]
            total += float(logits.double().log_softmax(-1)[row, targets].sum())
        return total


def wrap(
    foreign: Any,
    window: int | None = None,
    stride: int = 0,
    bos: int | None = None,
    ends: bool | None = None,
    normalised: bool = False,
) -> CausalLM | MaskedLM:
    """``(network, tokenizer)``: a causal or a masked language model. See CausalLM for the options."""
    if not isinstance(foreign, tuple):
        raise StructureError(
            f"transformers' {type(foreign).__name__} alone", "a language model and its tokenizer",
            "wrap((model, tokenizer)), or from_pretrained(folder)",
        )  # fmt: skip
    network, tokenizer = foreign
    if getattr(network.config, "is_encoder_decoder", False):
        raise StructureError(f"{type(network).__name__}, an encoder-decoder", "a causal or a masked model")
    bare = network.get_base_model() if hasattr(network, "get_base_model") else network  # what peft put adapters into
    if not type(bare).__name__.endswith(("ForMaskedLM", "ForPreTraining")):
        return CausalLM(network, tokenizer, window, stride, bos, ends, normalised)
    told = {"stride": stride != 0, "bos": bos is not None, "ends": ends is not None, "normalised": normalised}
    if extra := [name for name, given in told.items() if given]:
        raise ParameterError(f"{', '.join(extra)} for a masked model", "window= alone", "Leave it out")
    return MaskedLM(network, tokenizer, window)


def read(folder: str | PathLike, allow_pickle: bool = False, **options: Any) -> CausalLM | MaskedLM:
    """A language model and its tokenizer from a folder of ``save_pretrained``: offline, no code of its own is run.

    Arguments:
        folder: A folder on this machine; a name of a hub is refused, never looked up.
        allow_pickle: Whether weights may be read from .bin files of torch, where there are no safetensors.
        **options: Of CausalLM: window=, stride=, bos=, ends=, normalised=.

    Raises:
        StoreError: no folder, parts that are missing or can't be read.
        MissingExtra: transformers is not installed.
    """
    path = Path(fspath(folder))
    if not path.is_dir():
        raise StoreError(
            f"{str(path)!r} is no folder", "a folder of save_pretrained on this machine",
            "Names of a hub are not looked up: download the folder first",
        )  # fmt: skip
    if not (path / "config.json").exists():
        raise StoreError(f"{path} holds no config.json", "a folder of save_pretrained", "Check the path")
    safe = any(path.glob("*.safetensors"))
    if not safe and not allow_pickle:
        raise StoreError(
            f"{path} holds no safetensors", "weights in safetensors",
            "Save it again by save_pretrained, or trust its author: allow_pickle=True",
        )  # fmt: skip
    try:
        import transformers
    except ImportError as missing:
        raise MissingExtra("transformers", "transformers") from missing
    offline = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = transformers.AutoConfig.from_pretrained(path, **offline)
        masked = any(name.endswith(("MaskedLM", "ForPreTraining")) for name in config.architectures or ())
        kind = transformers.AutoModelForMaskedLM if masked else transformers.AutoModelForCausalLM
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, **offline)
        network, info = kind.from_pretrained(
            path, use_safetensors=safe, dtype=torch.float32, output_loading_info=True, **offline
        )
    except Exception as problem:
        text = " ".join(str(problem).split())[:200]
        raise StoreError(f"{path} can't be read: {text}", "a language model and its tokenizer") from problem
    if lacks := sorted(info["missing_keys"]) + [str(key) for key in info["mismatched_keys"]]:
        raise StoreError(
            f"{path} lacks weights of a {type(network).__name__}: {', '.join(lacks[:3])}",
            "all of them: transformers would draw the missing ones at random",
            "Save the model with its head",
        )
    return wrap((network, tokenizer), **options)
