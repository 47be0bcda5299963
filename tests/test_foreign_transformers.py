"""Language models of transformers: their own loss, no effect of padding or order, and what a number is about."""

import builtins
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from probgen import foreign
from probgen.errors import MissingExtra, ParameterError, StoreError, StructureError
from probgen.foreign.causal import CausalLM
from probgen.foreign.transformers import MaskedLM
from probgen.logprob import Kind

BOS, EOS, MASK = 26, 27, 28
LETTERS = "abcdefghijklmnopqrstuvwxyz"
TEXTS = ["a", "banana", "the quick brown fox".replace(" ", ""), "zz", "hello", "b" * 40]


class Tokenizer:
    """Letters, and how they may be changed on the way in."""

    bos_token_id, eos_token_id, mask_token_id = BOS, EOS, MASK
    all_special_ids = (BOS, EOS, MASK)

    def __init__(self, **changes):
        self.__dict__.update(changes)

    def __len__(self):
        return 29

    def __call__(self, texts, add_special_tokens):
        ids = [[LETTERS.index(letter) for letter in text.lower()] for text in texts]
        return {"input_ids": [[BOS, *one, EOS] for one in ids] if add_special_tokens else ids}

    def decode(self, ids, skip_special_tokens, clean_up_tokenization_spaces):
        assert skip_special_tokens
        assert not clean_up_tokenization_spaces
        return "".join(LETTERS[i] for i in ids if i < 26)


class Network(nn.Module):
    """Called as transformers' networks are: absolute positions, a mask that it obeys, logits over 29 tokens."""

    def __init__(self, window=64, ahead=False, seed=0, **config):
        super().__init__()
        self.config = SimpleNamespace(vocab_size=29, n_positions=window, **config)
        self.ahead = ahead
        generator = torch.Generator().manual_seed(seed)
        self.read = nn.Parameter(torch.randn(29, 8, generator=generator))
        self.place = nn.Parameter(torch.randn(window, 8, generator=generator))
        self.say = nn.Parameter(torch.randn(8, 29, generator=generator) / 2)

    def forward(self, input_ids, attention_mask, position_ids):
        keep = attention_mask[..., None].float()
        h = (self.read[input_ids] + self.place[position_ids]).tanh() * keep
        total, count = (
            (h.sum(1, keepdim=True), keep.sum(1, keepdim=True)) if self.ahead else (h.cumsum(1), keep.cumsum(1))
        )
        return SimpleNamespace(logits=(total / count.clamp_min(1) + h / 2) @ self.say)


def by_hand(network, ids, first=1):
    """Sum of log p of tokens ``first`` on, one text at a time, by the definition."""
    ids = torch.tensor([ids])
    own = network(ids, torch.ones_like(ids), torch.arange(ids.shape[1])[None]).logits.double().log_softmax(-1)
    return float(own[0, :-1].gather(1, ids[0, 1:, None])[first - 1 :].sum())


def path(text):
    return [LETTERS.index(letter) for letter in text]


def test_a_text_is_its_tokens_and_its_end_whatever_stands_beside_it():
    network = Network()
    model = foreign.wrap((network, Tokenizer()))
    lp = model.log_prob(TEXTS)
    expected = [by_hand(network, [BOS, *path(text), EOS]) for text in TEXTS]
    np.testing.assert_allclose(lp.nats, expected, rtol=1e-5)
    assert lp.kind is Kind.LOWER
    assert lp.of == "x"
    assert lp.measure == "counting(bytes)"
    alone = [float(model.log_prob([text]).nats[0]) for text in TEXTS]
    np.testing.assert_allclose(lp.nats, alone, rtol=1e-5)
    np.testing.assert_allclose(model.log_prob(TEXTS[::-1]).nats[::-1], lp.nats, rtol=1e-5)
    positions = network.place.data.clone()
    network.place.data = positions.roll(1, 0)  # the twin: positions off by one, as unannounced left padding gives them
    assert abs(model.log_prob(TEXTS).nats - lp.nats).max() > 1e-3


def test_its_tokens_have_an_exact_number_of_another_measure():
    model = foreign.wrap((Network(), Tokenizer()))
    tokens = model.log_prob_tokens(TEXTS)
    assert tokens.kind is Kind.EXACT
    assert tokens.of == "tokens"
    assert tokens.measure == "counting(tokens)"
    np.testing.assert_array_equal(tokens.nats, model.log_prob(TEXTS).nats)


def test_bits_are_counted_in_bytes_of_the_text():
    model = foreign.wrap((Network(), Tokenizer()))
    bits = model.bits_per_byte(TEXTS)
    lp = model.log_prob(TEXTS)
    assert bits.value == pytest.approx(-lp.nats.sum() / math.log(2) / sum(map(len, TEXTS)))
    assert bits.kind is Kind.UPPER


@pytest.mark.parametrize(("window", "stride"), [(8, 8), (8, 4), (8, 1), (5, 2)])
def test_windows_score_each_token_once_from_the_declared_context(window, stride):
    network = Network()
    model = foreign.wrap((network, Tokenizer()), window=window, stride=stride)
    text = "the" * 11
    ids = [BOS, *path(text), EOS]
    total = 0.0
    for target in range(1, len(ids)):
        begin = 0 if target <= window else -(-(target - window) // stride) * stride
        total += by_hand(network, ids[begin : target + 1], first=target - begin)
    lp = model.log_prob([text, "a"])
    assert float(lp.nats[0]) == pytest.approx(total, rel=1e-5)
    assert f"window {window}, stride {stride}" in lp.by
    assert abs(total - by_hand(network, ids)) > 1e-2  # the twin: one long window is another number


def test_a_continuation_is_scored_after_its_prefix():
    network = Network()
    model = foreign.wrap((network, Tokenizer()), window=6, stride=2)
    whole, open_prefix = (
        model.log_prob(["bananas"]),
        foreign.wrap((network, Tokenizer()), window=6, stride=2, ends=False),
    )
    rest = model.log_prob(["nas"], given="bana")
    assert rest.of == "x|prefix"
    head = open_prefix.log_prob(["bana"])
    assert head.of == "x..."
    np.testing.assert_allclose(head.nats + rest.nats, whole.nats, rtol=1e-5)
    many = model.log_prob(["nas", "t"], given=["bana", "ca"])
    assert many.nats[0] == pytest.approx(rest.nats[0], rel=1e-5)
    with pytest.raises(ParameterError, match="3 prefixes"):
        model.log_prob(["a", "b"], given=["a", "b", "c"])


def test_without_a_beginning_the_number_is_about_the_rest_and_says_so():
    network = Network()
    model = foreign.wrap((network, Tokenizer(bos_token_id=None)))
    lp = model.log_prob(TEXTS)
    assert lp.of == "x|first token"
    np.testing.assert_allclose(lp.nats, [by_hand(network, [*path(text), EOS]) for text in TEXTS], rtol=1e-5)
    bare = foreign.wrap((network, Tokenizer(bos_token_id=None)), ends=False)
    lp = bare.log_prob(TEXTS)
    assert lp.of == "x...|first token"
    assert lp.nats[0] == 0.0
    np.testing.assert_allclose(lp.nats[1:], [by_hand(network, path(text)) for text in TEXTS[1:]], rtol=1e-5)
    after = bare.log_prob(["nana", "a"], given="ba")
    assert after.nats[0] == pytest.approx(by_hand(network, path("banana"), first=2), rel=1e-5)
    with pytest.raises(StructureError, match="first token"):
        model.sample(1)
    assert model.sample(2, given="ab", length=5, seed=0)[0].startswith("ab")
    given = foreign.wrap((network, Tokenizer(bos_token_id=None)), bos=BOS)
    assert given.log_prob(["ab"]).of == "x"


def test_a_tokenizer_that_changes_texts_is_seen_row_by_row():
    network = Network()
    model = foreign.wrap((network, Tokenizer()))
    lp = model.log_prob(["abc", "Abc"])
    assert list(lp.kinds) == [Kind.LOWER, Kind.UNAVAILABLE]
    assert "'abc'" in lp.reason
    assert "normalised=True" in lp.instead
    assert model.log_prob_tokens(["abc", "Abc"]).kind is Kind.EXACT
    told = foreign.wrap((network, Tokenizer()), normalised=True).log_prob(["abc", "Abc"])
    assert told.of == "decode(encode(x))"
    assert told.nats[0] == told.nats[1]


def test_what_is_drawn_is_distributed_as_the_network_says():
    class Short(Network):
        def forward(self, input_ids, attention_mask, position_ids):
            found = super().forward(input_ids, attention_mask, position_ids).logits
            keep = torch.zeros(29)
            keep[[0, 1, EOS]] = 1
            return SimpleNamespace(logits=(found / 2).masked_fill(keep == 0, -30.0))

    network = Short()
    model = foreign.wrap((network, Tokenizer()), window=3, stride=1)
    drawn = model.sample(4000, seed=0, length=2)
    texts = ["a", "b", "aa", "ab", "ba", "bb"]
    lp = model.log_prob(["a", "b"]).nats
    full = foreign.wrap((network, Tokenizer()), window=3, stride=1, ends=False).log_prob(texts[2:]).nats
    p = np.exp(np.concatenate([lp, full]))
    p /= p.sum()
    counts = np.array([drawn.count(text) for text in texts])
    assert counts.sum() == 4000
    assert stats.chisquare(counts, 4000 * p).pvalue > 1e-6
    assert stats.chisquare(counts, 4000 * p[::-1]).pvalue < 1e-6  # the twin: the wrong way round
    assert model.sample(3, seed=1) == model.sample(3, seed=1)
    assert "cut at 2 tokens" in model.sample_target(length=2)


def test_a_masked_model_gives_scores():
    network = Network(ahead=True)
    network.config.is_decoder = False

    class ForMaskedLM(Network):
        pass

    model = foreign.wrap((ForMaskedLM(ahead=True, window=32), Tokenizer()))
    assert isinstance(model, MaskedLM)
    lp = model.log_prob(["abcab", "za", "q" * 31], seed=0)
    assert list(lp.kinds) == [Kind.SCORE, Kind.SCORE, Kind.UNAVAILABLE]
    assert "window" in lp.reason
    ids, total = [BOS, *path("abcab"), EOS], 0.0
    for place in range(1, 6):
        masked = torch.tensor([[*ids[:place], MASK, *ids[place + 1 :]]])
        logits = model.network(masked, torch.ones_like(masked), torch.arange(7)[None]).logits
        total += float(logits.double().log_softmax(-1)[0, place, ids[place]])
    assert lp[0].nats[0] == pytest.approx(total, rel=1e-5)
    with pytest.raises(StructureError, match="causal"):
        model.sample(1)
    with pytest.raises(StructureError, match="mask token"):
        foreign.wrap((ForMaskedLM(), Tokenizer(mask_token_id=None)))
    with pytest.raises(ParameterError, match="bos"):
        foreign.wrap((ForMaskedLM(), Tokenizer()), bos=3)


def test_what_is_no_causal_model_is_refused():
    with pytest.raises(StructureError, match="looks ahead"):
        foreign.wrap((Network(ahead=True), Tokenizer()))
    with pytest.raises(StructureError, match="encoder-decoder"):
        foreign.wrap((Network(is_encoder_decoder=True), Tokenizer()))
    network = Network()
    del network.config.n_positions
    with pytest.raises(StructureError, match="window="):
        foreign.wrap((network, Tokenizer()))
    with pytest.raises(ParameterError, match="whole number from 2 to 64"):
        foreign.wrap((Network(), Tokenizer()), window=65)
    with pytest.raises(ParameterError, match="stride"):
        foreign.wrap((Network(), Tokenizer()), window=8, stride=9)
    with pytest.raises(ParameterError, match="token id"):
        foreign.wrap((Network(), Tokenizer(bos_token_id=50256)))
    with pytest.raises(ParameterError, match="option"):
        foreign.wrap((Network(), Tokenizer()), strid=9)
    with pytest.raises(ParameterError, match="end token"):
        foreign.wrap((Network(), Tokenizer(eos_token_id=None)), ends=True)
    model = foreign.wrap((Network(), Tokenizer()))
    model.network.say.data[0, 0] = math.nan
    with pytest.raises(ParameterError, match="say"):
        model.log_prob(["ab"])
    with pytest.raises(StructureError, match="training by transformers"):
        model.fit(["a"])


def test_names_that_are_no_folders_are_refused_before_anything_is_imported(monkeypatch, tmp_path):
    real = builtins.__import__

    def no_transformers(name, *rest, **more):
        if name.partition(".")[0] == "transformers":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", no_transformers)
    for name in ("gpt2", "openai-community/gpt2", tmp_path / "nothing"):
        with pytest.raises(StoreError, match="not looked up"):
            foreign.from_pretrained(name)
    with pytest.raises(StoreError, match=r"config\.json"):
        foreign.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(StoreError, match="allow_pickle"):
        foreign.from_pretrained(tmp_path)
    with pytest.raises(MissingExtra, match="transformers"):
        foreign.from_pretrained(tmp_path, allow_pickle=True)


# With the library itself


def real_tokenizer(transformers, **special):
    tokenizers = pytest.importorskip("tokenizers")
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate([*letters, *dict.fromkeys(special.values())])}
    engine = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    engine.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = tokenizers.decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=engine, **special)


WORDS = ["In the beginning", "a", "God created the heaven and the earth. " * 2, "naïve café\n"]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    folder = tmp_path_factory.mktemp("gpt2")
    config = transformers.GPT2Config(
        vocab_size=257, n_positions=64, n_embd=32, n_layer=2, n_head=2, bos_token_id=256, eos_token_id=256,
        initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    real_tokenizer(transformers, bos_token="<|e|>", eos_token="<|e|>").save_pretrained(folder)
    return folder


def test_a_folder_of_gpt2_scores_as_its_own_loss_times_tokens(gpt2):
    model = foreign.from_pretrained(gpt2)
    assert isinstance(model, CausalLM)
    assert model.window == 64
    short = [WORDS[0], WORDS[1], WORDS[3]]
    expected = []
    for text in short:
        ids = torch.tensor([[256, *model.tokenizer(text, add_special_tokens=False)["input_ids"], 256]])
        expected.append(-float(model.network(ids, labels=ids).loss) * (ids.shape[1] - 1))
    np.testing.assert_allclose(model.log_prob(short).nats, expected, rtol=1e-5)
    np.testing.assert_allclose(foreign.wrap(gpt2).log_prob(WORDS).nats, model.log_prob(WORDS).nats, rtol=1e-6)
    alone = [float(model.log_prob([text]).nats[0]) for text in WORDS]
    np.testing.assert_allclose(model.log_prob(WORDS).nats, alone, rtol=1e-5)
    assert model.log_prob(["a<|e|>b"]).kind is Kind.UNAVAILABLE  # a special token that is spelt out


def test_draws_of_gpt2_with_a_cache_are_those_without(gpt2, monkeypatch):
    model = foreign.from_pretrained(gpt2, window=16, stride=4)
    cached = model.sample(4, given="In", length=30, seed=3)
    assert all(text.startswith("In") for text in cached)
    from probgen.foreign import causal

    def afresh(network, ids, state):
        return causal.logits_of(network, ids, torch.ones_like(ids, dtype=torch.bool))[:, -1], None

    monkeypatch.setattr(causal, "next_logits", afresh)
    assert model.sample(4, given="In", length=30, seed=3) == cached


def test_a_folder_of_bert_gives_scores(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    special = {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]", "pad_token": "[PAD]"}
    config = transformers.BertConfig(
        vocab_size=260, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=64,
    )  # fmt: skip
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path)
    real_tokenizer(transformers, **special).save_pretrained(tmp_path)
    model = foreign.from_pretrained(tmp_path)
    assert isinstance(model, MaskedLM)
    assert model.log_prob(["hello", "you"]).kind is Kind.SCORE
    ahead = transformers.BertLMHeadModel(config)
    with pytest.raises(StructureError, match="looks ahead"):
        foreign.wrap((ahead, model.tokenizer))


def test_a_damaged_folder_is_named(gpt2, tmp_path):
    (tmp_path / "config.json").write_text((gpt2 / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(StoreError, match="can't be read"):
        foreign.from_pretrained(tmp_path)
