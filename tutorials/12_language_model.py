# %% [markdown]
# # How probable is a text?
#
# A model that writes text one piece after the other is often called implicit: it seems to do nothing but draw. It has
# an exact likelihood all the same, and most of what goes wrong with published numbers (a first token that is left out,
# an end that is never paid for, windows that overlap, samplers that are scored as if they were the model) goes wrong
# because nobody asked what exactly has that probability. Run it whole (`python tutorials/12_language_model.py`; it
# takes some minutes), or cell by cell; `--smoke` is quick. It writes `held.pgc` into the folder you run it from.

# %%
import math
import sys
import time
from pathlib import Path

import probgen as pg

SMOKE = "--smoke" in sys.argv

# %% [markdown]
# ## A text
#
# The King James Bible, as Debian's `bible-kjv` has it, with every 20th chapter held out. Where that package is not
# installed, and for `--smoke`, some thousand sentences about countries and capitals stand in; they are synthetic, and
# far easier.

# %%
try:
    data = pg.datasets.load("capitals" if SMOKE else "kjv")
except pg.errors.DataError as missing:
    print(missing)
    data = pg.datasets.load("capitals")
train, held = data.split()
if data.name == "capitals":
    train, held = train[:600], held[:60]
print(data.about)
print(len(train), "texts to learn from,", len(held), "held out; the first begins:", train[0][:60])

# %% [markdown]
# ## Tokens
#
# A model of text needs symbols. Bytes are symbols, 256 of them. A byte-pair encoding learns longer ones from the text:
# fewer steps, and each of them says more. Nothing is normalised: what goes in comes out, byte by byte. However a text
# is cut, it stays so many bytes, so rates are told in bits a byte, and models over different tokens can be compared.

# %%
bpe = pg.events.BPE.learn(train, 300 if SMOKE else 2048)
ids = bpe.encode([held[0][:40]])[0]
print([bpe.pieces[i].decode(errors="replace") for i in ids])
assert bpe.decode(ids).decode() == held[0][:40]

# %% [markdown]
# ## Fit
#
# A small transformer; `budget` is in seconds. `pg.LanguageModel.learn(texts)` learns its tokens, too; here they are
# given. The n-gram counts instead of learning, and is hard to beat in little time.

# %%
event = pg.events.Text(bpe)
size = {"layers": 1, "width": 32, "heads": 2} if SMOKE else {}
how = {"steps": 60} if SMOKE else {"budget": 120}
began = time.process_time()
lm = pg.LanguageModel(event, **size).fit(train, seed=0, progress=False, **how)
print(f"{lm!r:.70}...: {lm.report.steps} steps, {time.process_time() - began:.0f} s of the processor")
ngram = pg.NGram(event, order=5).fit(train, seed=0)

# %% [markdown]
# ## What has that probability
#
# The whole text, from its first symbol to its end. `log_prob` is the sum of the steps *and* of the end; leave the end
# out, and the probabilities of all texts add up to more than one. Of the tokens that the tokenizer gives it is exact.
# Of the string it is a lower bound, as other tokens spell the same bytes, and the answer says which of the two it is.

# %%
text = [held[0][:80]]
whole, steps = lm.log_prob(text), lm.log_prob_steps(text)
print(whole)
print(f"steps {steps.nats.sum():.3f}, end {whole.nats[0] - steps.nats.sum():.3f}, first step {steps.nats[0]:.3f} nats")
print(lm.log_prob(text, by=pg.TokenPath()))

# %% [markdown]
# ## Bits a byte
#
# Over all held-out texts, ends included. *Frozen* is the model as it was fitted. *Prequential* takes a small step of
# gradient after each block that it has scored, so what it reads teaches it what comes later: also a fair code, as each
# symbol is paid for before it is learnt from, but not the same model. The answer names its window.

# %%
print("frozen:     ", lm.bits_per_byte(held))
print("prequential:", lm.bits_per_byte(held, adapting=True))
print("perplexity: ", lm.perplexity(held))

# %% [markdown]
# ## What follows what
#
# log p(continuation | prefix) is a question of its own; with the probability of the prefix as something that goes on
# it adds up to the whole. Cut where the tokenizer cuts, or the tokens on both sides are others than those of the whole.

# %%
tokens = bpe.encode(text)[0]
cut = len(tokens) // 2
prefix, rest = (bpe.decode(part).decode() for part in (tokens[:cut], tokens[cut:]))
follows = lm.log_prob([rest], given=prefix)
before = steps.nats[:cut].sum()
print(f"{follows.of}: {follows.nats[0]:.3f}; prefix {before:.3f}; together {follows.nats[0] + before:.3f}")
print(f"the whole: {whole.nats[0]:.3f}")

# %% [markdown]
# ## A sampler is another model
#
# Nobody draws from the model itself: temperature, top-k and top-p make texts look better. They make another
# distribution, too, and it has a likelihood of its own, which is minus infinity for what it would never draw. A
# sampler's draws shown beside the model's perplexity speak of two different models.

# %%
cool = lm.sampler(temperature=0.8)
print(cool.sample(1, given=text[0][:12], length=40, seed=1)[0])
print("the model:       ", lm.log_prob(held).mean())
print("temperature 0.8: ", cool.log_prob(held).mean())
print("top 20 alone:    ", lm.sampler(top_k=20).log_prob(held).mean())

# %% [markdown]
# ## The most probable text
#
# A beam search looks for it, and its scores are `log_prob` of what it returns: here they are asked again. `texts` have
# come to their end, which a chapter seldom does so early: these are improbable, and odd. `open` were still going on.

# %%
found = lm.beam(text[0][:12], width=4, length=24)
for one, score in zip(found.texts, found.scores.nats if found.texts else [], strict=True):
    print(f"{score:8.3f}  {lm.log_prob([one], given=text[0][:12]).nats[0]:8.3f}  {one!r}")
print("still open:", found.open[0])

# %% [markdown]
# ## What stands between
#
# The model reads from left to right; what belongs *into* a gap follows by Bayes' rule, exactly where the middles can
# be enumerated, else by particles, with their effective number.

# %%
left, right = ("the capital of ", " and") if data.name == "capitals" else ("In the beginning God", " the heaven")
middle = lm.infill(left, right, 1, seed=0)
print(f"{len(middle.middles)} middles of one token, by {middle.by}")
for one, nats in list(zip(middle.middles, middle.log_prob, strict=True))[:3]:
    print(f"{math.exp(nats):.3f}  {left}[{one}]{right}")

# %% [markdown]
# ## The proof
#
# A likelihood is a claim; a file is a proof. An arithmetic coder that asks the model for each next symbol's
# probabilities writes the held-out text in as many bits as the model claims, and the same model reads it back.

# %%
few = held[:20] if SMOKE else held[:2]
codec = pg.codec(lm)
blob = codec.compress(few)
Path("held.pgc").write_bytes(blob)
claimed = -lm.log_prob(few).sum().value / math.log(2)
header, payload = codec.sizes(blob)
print(f"claimed {claimed:.0f} bits, written {8 * payload} (and a header of {header} bytes)")
assert codec.decompress(Path("held.pgc").read_bytes()) == few
print(f"{len(''.join(few).encode())} bytes in {Path('held.pgc').stat().st_size}, and back again")

# %% [markdown]
# ## The other way to a sequence
#
# Text diffusion does not read from left to right: it masks symbols at random and says what they were, in blocks. Its
# likelihood is a lower bound (an average over all orders in which a block could be filled), with a standard error, and
# it can fill gaps anywhere without further ado.

# %%
small = {**size, "block": 4, "before": 32} if SMOKE else {}
diffusion = pg.TextDiffusion(event, **small).fit(train, seed=0, progress=False, **how)
print(diffusion.log_prob(held[:5], seed=0).bits_per_byte())
print(diffusion.sample(1, given=text[0][:12], length=40, seed=0)[0])

# %% [markdown]
# ## All of them in one table
#
# A packing program is a model of text, too: 2 to the minus its bits sums to at most one, so its file size is a lower
# bound on a log-likelihood. The mixture asks the language model and the n-gram for each next symbol and weighs the two;
# its weights come from texts that neither has seen, and that are not those that it is judged by. Half of the held-out
# texts are used for that here, so the table below is of the other half.

# %%
weighing, judged = held[::2], held[1::2]
blend = pg.Blend([lm, ngram]).fit(weighing, seed=0)
programs = {name: pg.Compressor(pg.events.Text(), name).fit(train, seed=0) for name in ("xz", "gzip")}
models = {"language model": lm, "5-gram": ngram, "both": blend, "text diffusion": diffusion, **programs}
table = pg.compare(models, judged, samples=False)
print(table)

# %% [markdown]
# Read it with the kinds in mind. What is a lower bound may be better than it looks: of the diffusion by what the bound
# leaves, of all models over tokens by other ways to spell, which is little. "vs best" says how far the rows carry.
