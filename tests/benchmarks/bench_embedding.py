"""Skip-gram on King James text: python tests/benchmarks/bench_embedding.py [epochs] [rounds] [kernel,torch,gensim]

Words a CPU second (occurrences of known words times epochs; of training alone, and with the vocabulary), and quality:
analogies at rank 1 and in five, pairs of words that are among each other's ten nearest. All chapters, dim 100, window
5, 5 negatives, min_count 5, sample 1e-3, in turns within one process. gensim takes part where it is installed, in an
environment of its own that also sees this one's packages. Published beside (another day): gensim 405 k words/s, 7 of
19 analogies first, 12 in five, 14 of 20 pairs.
"""

import re
import sys
import time

import numpy as np
import torch

from probgen import datasets
from probgen.models.embedding import Embedding

ANALOGIES = """man woman king queen|father mother son daughter|brother sister father mother|husband wife father mother
he she his her|man woman his her|son daughter sons daughters|man men woman women|day days year years
king kings priest priests
go went come came|hath have doth do|abraham sarah isaac rebekah|moses aaron david jonathan|hand hands eye eyes
heaven earth light darkness|israel samaria judah jerusalem|bread eat wine drink|egypt pharaoh babylon nebuchadnezzar
one first two second|lamb ewe ram ewes|morning evening day night"""
PAIRS = """heaven earth|moses aaron|silver gold|father mother|sons daughters|bread wine|sheep goats
horses chariots|eyes ears|peter john|mary martha|north south|sword famine|day night|king queen|hand arm
flesh blood|oil wine
judah israel|wife husband"""


def rows(text):
    return [row.split() for line in text.splitlines() for row in line.split("|")]


def clocked(run):
    began = time.process_time()
    return run(), time.process_time() - began


def quality(model):
    total = model.evaluate(rows(ANALOGIES)).total
    near = sum(b in [w for w, _ in model.nearest(a, 10)] or a in [w for w, _ in model.nearest(b, 10)]
               for a, b in rows(PAIRS) if a in model and b in model)  # fmt: skip
    return f"analogies {total.first} first, {total.five} in five of {total.asked}; pairs {near} of {len(rows(PAIRS))}"


def ours(texts, epochs, seed, path):
    model, whole = clocked(lambda: Embedding().fit(texts, epochs=1, seed=seed, path=path))
    words = int(model.counts.sum())
    model, longer = clocked(lambda: Embedding().fit(texts, epochs=1 + epochs, seed=seed, path=path))
    return model, words * epochs / (longer - whole), words * (1 + epochs) / longer


def theirs(texts, epochs, seed):
    from gensim.models import Word2Vec

    cut = [re.findall(r"\w+(?:['’]\w+)*", text.lower()) for text in texts]
    options = {"vector_size": 100, "window": 5, "negative": 5, "min_count": 5, "sg": 1, "workers": 1, "seed": seed}

    def built():
        model = Word2Vec(**options)
        model.build_vocab(cut)
        return model

    model, building = clocked(built)
    words = sum(model.wv.get_vecattr(word, "count") for word in model.wv.index_to_key)
    _, training = clocked(lambda: model.train(cut, total_examples=len(cut), epochs=1 + epochs))
    table = Embedding.from_table(model.wv.index_to_key, model.wv.vectors)
    return table, words * (1 + epochs) / training, words * (1 + epochs) / (training + building)


def main(epochs=9, rounds=1, who=("kernel", "gensim")):
    torch.set_num_threads(1)
    train, held = datasets.load("kjv").split()
    texts = [*train, *held]
    for seed in range(rounds):
        for name in who:
            run = theirs if name == "gensim" else lambda *a, path=name: ours(*a, path)
            model, speed, whole = run(texts, epochs, seed)
            print(
                f"{name:7s} seed {seed}  {speed / 1e3:5.0f} k words/s trained, "
                f"{whole / 1e3:5.0f} k with the vocabulary; {quality(model)}",
                flush=True,
            )
    words = [word for pair in rows(PAIRS) for word in pair]
    print("mean norm", float(np.linalg.norm([model.vector(word) for word in words if word in model], axis=1).mean()))


if __name__ == "__main__":
    given = sys.argv[1:]
    main(*[int(value) for value in given[:2]], *[tuple(value.split(",")) for value in given[2:3]])
