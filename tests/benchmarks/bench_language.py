"""Language models against the clock and beside transformers: python tests/benchmarks/bench_language.py PART [...]

quality [steps [folder]]  King James text, BPE 2048, one thread: bits/byte of the held-out chapters, frozen at three
                          strides and prequential; CPU seconds; the model saved in a folder
step                      a training step of 16 x 256 tokens beside GPT-2's of the same shape (4 x 128, 2048 symbols),
                          in the precision that `fit` takes here by itself and in the other
sample                    200 symbols after 16, top-k 50, batches of 1, 8 and 32, of 2048 tokens and of bytes (the
                          default shape), beside transformers' generate of GPT-2 of the same shape
generate [folder]         the same of a saved model, beside GPT-2 of its shape with random weights
score                     2000 ragged sentences beside padded batches of 32 in the order given

All but the first need transformers; ratios are medians of interleaved pairs of CPU times on one thread.
"""

import statistics
import sys
import time

import numpy as np
import torch

from probgen import datasets, store
from probgen.events import BPE, Ragged, Text
from probgen.models.language import LanguageModel
from probgen.models.language.learning import player, windows
from probgen.training.muon import halves_well

store.FAMILIES.setdefault("LanguageModel", "probgen.models.language")
store._PARTS.setdefault("BPE", "probgen.events")


def quality(steps="1400", folder="", tokens="2048", **options):
    train, test = datasets.load("kjv").split()
    began = time.process_time()
    event = Text(BPE.learn(train, int(tokens)))
    print(f"{event.tokenizer}: {time.process_time() - began:.1f} CPU-s", flush=True)
    began, wall = time.process_time(), time.perf_counter()
    model = LanguageModel(event, **options).fit(train, steps=int(steps), seed=0)
    spent = time.process_time() - began
    size = sum(p.numel() for p in model.parameters())
    print(f"{steps} steps, {spent:.0f} CPU-s, {time.perf_counter() - wall:.0f} s, {size:,} parameters")
    print("nats a token:", *(f"{value:.3f}" for value in model.report.objective), flush=True)
    if folder:
        store.save(model, folder)
    judge(model, test)


def judge(model, test):
    for stride in (256, 128, 64):
        began = time.process_time()
        bits = model.bits_per_byte(test, stride=stride)
        print(f"stride {stride}: {bits} by {bits.by}, {time.process_time() - began:.1f} CPU-s", flush=True)
    began = time.process_time()
    print(f"prequential: {model.bits_per_byte(test, adapting=True)}, {time.process_time() - began:.1f} CPU-s")
    print(model.sample(1, given="In the beginning", seed=1, length=60)[0])


def paired(ours, theirs, pairs):
    """Medians of CPU times of ours and theirs, and of their ratio, of interleaved runs."""
    ratios, times = [], ([], [])
    for _ in range(pairs + 1):
        for run, kept in zip((ours, theirs), times, strict=True):
            began = time.process_time()
            run()
            kept.append(time.process_time() - began)
        ratios.append(times[1][-1] / times[0][-1])
    return *(statistics.median(kept[1:]) for kept in times), statistics.median(ratios[1:]), min(ratios[1:])


def gpt2(symbols=2049, layers=4, width=128, heads=4):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    shape = {"n_layer": layers, "n_embd": width, "n_head": heads, "vocab_size": symbols, "n_positions": 512}
    last = symbols - 1
    return GPT2LMHeadModel(GPT2Config(**shape, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=last,
                                      eos_token_id=None, pad_token_id=last))  # fmt: skip


def random_model(window=512, tokens=2048):
    """An unfitted model of tokens, or of bytes, with first values; the ids stand for text."""
    event = Text() if tokens == 256 else Text(BPE([(i % 256, i % 7) for i in range(tokens - 256)]))
    model = LanguageModel(event, window=window)
    model.network.reset(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for weight in model.network.matrices:
            weight.add_(0.02)
    return model


def step():
    model, peer = random_model(256), gpt2()
    ids = torch.randint(2048, (16 * 257,), generator=torch.Generator().manual_seed(0))
    rows = windows(Ragged(ids, torch.tensor([len(ids)])), 2048, 256)[:16]
    generator, adam = torch.Generator(), torch.optim.AdamW(peer.parameters(), lr=1e-4, fused=True)

    def theirs():
        peer(input_ids=rows[:, :-1], labels=rows[:, :-1]).loss.backward()
        adam.step()
        adam.zero_grad()

    own = halves_well(model.network)
    for half in (True, False):
        made = player(model.network, model.alphabet, half)

        def ours(made=made):
            made.loss(rows, generator, 0.0).backward()
            for group in made.optimiser.param_groups:
                group["lr"] = 1e-4
            made.optimiser.step()
            made.optimiser.zero_grad()

        a, b, ratio, least = paired(ours, theirs, 5)
        name = ("bfloat16" if half else "float32") + " (what fit takes here)" * (half is own)
        print(f"{name}: ours {a * 1e3:.0f} ms, GPT-2 in float32 {b * 1e3:.0f} ms: {ratio:.2f}x (least {least:.2f}x)")


def sample():
    for tokens in (2048, 256):
        generated(random_model(tokens=tokens), f"{tokens} tokens")


def generate(folder="/tmp/N/lm"):
    generated(store.load(folder), folder)


def generated(model, name):
    from probgen.models.language.choosing import Choice, grow

    symbols = model.network.symbols
    peer = gpt2(symbols, model.layers, model.width, model.heads).eval()
    prompt = torch.randint(symbols - 1, (16,), generator=torch.Generator().manual_seed(0))
    mask = {batch: torch.ones(batch, 16, dtype=torch.int64) for batch in (1, 8, 32)}
    print(f"{name}: logits of the kernel within {agreement(model, prompt):.1e} of torch's, of the largest")
    for batch in mask:
        made = []

        def ours(batch=batch, made=made):
            stepper = model._stepper(batch)
            with torch.no_grad():
                stepper.read(prompt)
                made.append(sum(map(len, grow(stepper, Choice(top_k=50), torch.Generator().manual_seed(1), 200))))

        def theirs(batch=batch):
            peer.generate(prompt.expand(batch, -1), attention_mask=mask[batch], max_new_tokens=200, do_sample=True,
                          top_k=50)  # fmt: skip

        a, b, ratio, least = paired(ours, theirs, 7 if batch == 1 else 5)
        each = made[-1] / (200 * batch)  # texts of ours end, and then their rows cost no more
        print(f"batch {batch}: ours {made[-1] / a:.0f} tokens/s ({made[-1]}), theirs {200 * batch / b:.0f}: "
              f"{ratio * each:.2f}x a token (least {least * each:.2f}x)", flush=True)  # fmt: skip


def agreement(model, ids):
    """The kernel's logits against the whole network's, step by step, as a share of the largest."""
    stepper = model._stepper(1)
    for symbol in ids:
        stepper.push(symbol[None])
    with torch.no_grad():
        wanted = model.network.head(model.network(stepper.history)[:, -1])
    return float((stepper._logits - wanted).abs().max() / wanted.abs().max())


def score():
    model, peer = random_model(256), gpt2().eval()
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.gamma(4.5, 8.5, 2000).astype(int), 4, 110)
    ids = Ragged(torch.from_numpy(rng.integers(2048, size=lengths.sum())), torch.from_numpy(lengths))
    parts = ids.split()

    @torch.no_grad()
    def theirs():
        for i in range(0, len(parts), 32):
            some = parts[i : i + 32]
            rows = torch.full((len(some), max(map(len, some)) + 2), 2048)
            mask = torch.zeros_like(rows)
            for row, kept, part in zip(rows, mask, some, strict=True):
                row[1 : len(part) + 1] = part
                kept[: len(part) + 2] = 1
            logits = peer(input_ids=rows[:, :-1], attention_mask=mask[:, :-1]).logits.log_softmax(-1)
            (logits.gather(-1, rows[:, 1:, None])[..., 0] * mask[:, 1:]).sum(1)

    @torch.no_grad()
    def ours():
        model._totals(ids, None)

    a, b, ratio, least = paired(ours, theirs, 3)
    print(f"{lengths.sum()} tokens: ours {lengths.sum() / a:.0f} tokens/s, theirs {lengths.sum() / b:.0f}: "
          f"{ratio:.2f}x (least {least:.2f}x)")  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    part, *rest = sys.argv[1:] or [""]
    parts = {"quality": quality, "step": step, "sample": sample, "generate": generate, "score": score}
    if part not in parts:
        sys.exit(__doc__)
    parts[part](*rest)
