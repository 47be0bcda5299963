# %% [markdown]
# # Images and captions
#
# One density over pictures and the words about them. From it follow: a caption for a picture, a picture for a caption,
# an answer to a question, and how probable each of them is. Beside it stands a contrastive model, which compares
# pictures with captions and knows no probabilities at all.
# Run it whole (`python tutorials/14_images_and_captions.py`, a quarter of an hour), or cell by cell; `--smoke` is
# quick. It leaves two pictures in the folder you run it from.

# %%
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

import probgen as pg

SMOKE = "--smoke" in sys.argv
FASHION = Path("/usr/share/datasets/fashion-mnist").exists() and not SMOKE

# %% [markdown]
# ## Pictures with words
#
# 70 000 pictures of clothes, with captions made from their class and from simple measurements: how dark, how wide, with
# a heel or not. There are 60 captions, each a function of the grey picture. Where Debian's package
# dataset-fashion-mnist is not installed (and in `--smoke`) there are 1797 small digits with their names.
#
# A row is a record: `{"image": ..., "caption": ...}`. Its event says what each part is; words are tokens.

# %%
data = pg.datasets.load("fashion_captions" if FASHION else "digit_words")
train, held = data.split()
print(data.event)
print(len(train["caption"]), "rows to learn from,", len(held["caption"]), "held out:")
print(*held["caption"][:4], sep="\n")
print("most frequent:", Counter(train["caption"]).most_common(2))

# %% [markdown]
# ## Fit
#
# One latent code z for both, a decoder for pixels and one for words; one network guesses z from a picture and a
# caption, others from either alone.

# %%
model = pg.MultimodalVAE.for_event(data.event)
model.fit(train, seed=0, **({"steps": 120} if SMOKE else {"budget": 600 if FASHION else 60}))
print("bound on held-out rows:", round(model.report.objective[-1], 1), "nats a row after", model.report.steps, "steps")

# %% [markdown]
# ## How probable?
#
# The joint density, and that of a part alone, are bounded from below. A conditional one is an estimate: it is the
# ratio of two averages over the same draws, each with an error of its own. The difference of two lower bounds bounds
# nothing: records minus their pictures is refused. Their sum by the chain rule is an estimate of the joint.

# %%
rows = 4 if SMOKE else 20
some = {name: part[:rows] for name, part in held.items()}
quick = {"by": pg.IWAE(samples=100), "seed": 0}
joint = model.log_prob(some, **quick)
alone = model.log_prob({"image": some["image"]}, **quick)
print("joint   ", joint.mean())
print("image   ", alone.mean())
print("caption ", model.log_prob({"caption": some["caption"]}, **quick).mean())
try:
    joint - alone
except pg.errors.Incomparable as refusal:
    print(refusal)
given = model.log_prob({"caption": some["caption"]}, given={"image": some["image"]}, seed=0)
print("caption given image", given.mean())
both = given + alone  # the chain rule, over the same rows
print(f"sum, log p({both.of})", both.mean())

# %% [markdown]
# ## From one to the other
#
# `sample(n, given=...)` draws whole records; `caption` and `imagine` are short for it. What z is drawn from is said:
# draws of the guide are weighted and drawn again, so that they come from the posterior and not from a guess at it.

# %%
print(model.sample_target(given=True))
print(*zip(held["caption"][:4], model.caption(held["image"][:4]), strict=True), sep="\n")
asked = ["a dark boot", "a bright wide dress"] if FASHION else ["a bold three", "a thin seven"]
drawn = model.imagine(asked, n=16, seed=0)
print("images for captions:", drawn.shape)
pg.plots.samples(
    {
        "held out": held["image"][:16],
        asked[0]: drawn[0],
        asked[1]: drawn[1],
        "joint": model.sample(16, seed=1)["image"],
    },
    "images_for_captions.png",
)
model.plot({name: part[:8] for name, part in held.items()}, "records.png")
again = model.vary({name: part[:1] for name, part in held.items()}, 3, seed=0)
print("like", held["caption"][0], "->", again["caption"])

# %% [markdown]
# A caption that no one has said is a string of words like any other; what the model makes of it is another matter.

# %%
odd = ["a dark boat", "boot", "a wide three"]
print(model.log_prob({"caption": odd}, **quick).nats.round(1))

# %% [markdown]
# ## Questions
#
# A question has finitely many answers, each given by some captions. Asking is conditioning: the posterior over those
# captions given the picture, summed by answer.

# %%
questions = pg.datasets.questions(data)
for question in questions[:3]:
    posterior = model.posterior_over("caption", list(question.captions), given={"image": held["image"][:2]}, seed=0)
    told = dict(zip(question.choices, question.of(posterior.p)[0].round(3).tolist(), strict=True))
    print(question.text, told, "true:", *question.answer(held["caption"][:1]))

# %% [markdown]
# ## Do the parts belong together?
#
# A judge says what a drawn picture shows. It is a classifier and errs, so how often it is right on real pictures stands
# beside each figure: a model can't be asked for more.

# %%
taught = {name: part[:300] for name, part in train.items()} if SMOKE else train
found = pg.coherence(
    model, held, questions[0], train=taught, questions=() if SMOKE else questions, draws=100 if SMOKE else 1000,
    rows=50 if SMOKE else 500, asked=100, tests=not SMOKE, seed=0,
)  # fmt: skip
print(found)

# %% [markdown]
# ## Missing parts
#
# A picture without a caption is data, too: None in a list of captions, NaN throughout in a picture. What is missing is
# integrated out, in training and in scoring.

# %%
partly = {"image": held["image"][:4], "caption": [held["caption"][0], None, None, held["caption"][3]]}
scores = model.log_prob(partly, **quick)
print(scores.nats.round(1))

# %% [markdown]
# ## The contrastive baseline
#
# Two encoders, trained to tell true pairs from shuffled ones, as CLIP is. It finds the caption of a picture among many,
# quickly, and answers questions; it draws nothing, and its numbers are similarities: kind score, to be compared among
# themselves only.

# %%
pairs = pg.Contrastive.for_event(data.event)
pairs.fit(train, seed=0, **({"steps": 100} if SMOKE else {"budget": 120 if FASHION else 30}))
few = {name: part[:500] for name, part in held.items()}
print(pairs.retrieve(few["image"], few["caption"], k=(1, 5)))
for question in questions[:3]:
    right = question.answer(few["caption"])
    rows = [i for i, answer in enumerate(right) if answer is not None]
    told = question.of(pairs.classify(few["image"][rows], list(question.captions)))
    share = np.mean([question.choices[k] == right[i] for k, i in zip(told.argmax(1), rows, strict=True)])
    print(f"{question.text} {share:.1%} right")
print(pairs.log_prob(some).kind, pairs.log_prob(some).nats[:3].round(2))
try:
    pairs.sample(4)
except pg.errors.StructureError as refusal:
    print(refusal)

# %% [markdown]
# ## Your own pictures
#
# A folder with `captions.csv` (or `.jsonl`) of two columns, `file` and `caption`, is a data set. A picture that is not
# there is named.

# %%
folder = Path(tempfile.mkdtemp())
(folder / "captions.csv").write_text("file,caption\nboot.png,a dark boot\n")
try:
    pg.datasets.load(folder)
except pg.errors.DataError as refusal:
    print(refusal)
