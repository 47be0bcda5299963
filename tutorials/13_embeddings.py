# %% [markdown]
# # Word vectors, and the law behind them
#
# Skip-gram with negative sampling gives every word a vector. Two things are asked of them here: analogies, which
# everybody asks, and what probability they stand for, which hardly anybody does. Run it whole (`python
# tutorials/13_embeddings.py`), or cell by cell; `--smoke` is quick. It leaves `capitals.png` in the folder you run it
# from.

# %%
import sys

import numpy as np

import probgen as pg

SMOKE = "--smoke" in sys.argv

# %% [markdown]
# ## Sentences
#
# They are synthetic and say so: templates, filled with the names of 99 countries and their capitals. The names are
# facts; the sentences are not about anything.

# %%
data = pg.datasets.load("capitals")
print(data.about)
print(*data.x[:4], sep="\n")

# %% [markdown]
# ## Fit, and ask
#
# The vocabulary is small, so no word is thinned: `sample=0`. An analogy is a sum of directions, moscow - russia +
# japan; the three words themselves are left out of the answer.

# %%
model = pg.Embedding(dim=50, sample=0).fit(data.x, seed=0, epochs=10 if SMOKE else 20)
print(model, "trained in", round(model.report.seconds, 1), "s")
print(model.analogy("moscow", "russia", "japan", k=3))
print(model.analogy("moscow", "russia", "japan", k=3, by="mul"))
print(model.nearest("paris", 4))

# %% [markdown]
# One analogy that comes out is an anecdote. All of one kind are a number: for each pair of countries, is the second
# capital found from the first?

# %%
pairs = [("france", "paris"), ("peru", "lima"), ("kenya", "nairobi"), ("japan", "tokyo"), ("norway", "oslo")]
questions = [(*a, *b) for a in pairs for b in pairs if a != b]
print(model.evaluate(questions))
assert model.evaluate(questions).first > 0.9

# %% [markdown]
# A map shows why: from a country to its capital it is about the same way everywhere.

# %%
links = [*pairs, ("egypt", "cairo"), ("chile", "santiago"), ("latvia", "riga"), ("nepal", "kathmandu")]
model.plot([word for link in links for word in link], "capitals.png", links=links)

# %% [markdown]
# ## What the vectors say about probability
#
# Training tells true neighbours from noise. Where it has converged, the product of two vectors is the logarithm of a
# ratio: how much more often c stands near w than in the noise. Multiplied by the noise and summed over the whole
# vocabulary, that is a law p(c | w), and it is exact: its kind says so.

# %%
print(model.log_prob(["france", "peru"], given="paris"))
print(np.exp(model.log_prob(list(model.words), given="paris").nats).sum())
print(model.sample(8, given="paris", seed=0))

# %% [markdown]
# ## What they do not say
#
# There is no law of texts in it. A sum over all pairs of a text counts each word many times, so it is a *score*: good
# for ranking texts among themselves, never to be compared with the likelihood of a language model. Addition refuses.

# %%
texts = ["paris is the capital of france", "paris is the capital of peru"]
score = model.log_prob(texts)
print(score.kind, score.nats)
try:
    score + model.log_prob(["france", "peru"], given="paris")
except pg.errors.Incomparable as refusal:
    print(refusal)

# %% [markdown]
# ## Files of others, and questions that can't be answered
#
# word2vec's and GloVe's files go in and out; `Embedding.of(language_model)` takes the table of a language model, and
# `Embedding.from_safetensors(file, tokenizer_json)` that of one on disk. A word that is not there is refused with
# those that are spelt nearly so.

# %%
model.write("capitals.txt", "word2vec")
again = pg.Embedding.read("capitals.txt")
print(again, again.analogy("moscow", "russia", "japan", k=1))
try:
    model.nearest("moskow")
except pg.errors.DataError as refusal:
    print(refusal)
