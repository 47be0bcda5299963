"""Images and captions of clothes: quality of MultimodalVAE beside MVAE and MoPoE, equal networks and CPU time.

    python tests/benchmarks/bench_multimodal.py [--seconds 600] [--models joint,alone,poe,mopoe] [--out figures.jsonl]

One thread. ``alone`` are the networks of ``joint`` trained for likelihood only (weights 1, no guides of subsets): what
coherence costs. ``poe`` is MVAE (Wu and Goodman 2018), ``mopoe`` is MoPoE (Sutter, Daunhawer and Vogt 2021): our own
implementations of the published objectives, N(0, I) prior as published, for MultiVae needs torchvision. The judge is a
small convolutional classifier of real training images; its accuracy on real held-out rows stands beside.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

import probgen as pg
from probgen import datasets
from probgen.models.multimodal import MultimodalVAE
from probgen.nn import ConvEncoder, reset

ROWS = 1000
MODELS = {
    "joint": ({}, {}),
    "alone": ({"weights": {"image": 1.0, "caption": 1.0}}, {"matching": 0.0}),
    "poe": ({"aggregation": "poe", "prior": "normal"}, {}),
    "mopoe": ({"aggregation": "mopoe", "prior": "normal"}, {}),
}


def judge(images: np.ndarray, labels: np.ndarray, steps: int = 2500) -> nn.Module:
    """A classifier of images, trained on real ones."""
    net, generator = ConvEncoder((1, 28, 28), (24, 48), (128,), 10), torch.Generator().manual_seed(0)
    reset(net, generator)
    optimiser = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=0.02)
    x, y = torch.from_numpy(images).float()[:, None], torch.from_numpy(labels)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 1e-3 * (1 - step / steps) + 1e-5
        rows = torch.randint(len(x), (128,), generator=generator)
        loss = nn.functional.cross_entropy(net(x[rows]), y[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return net


def kept(path: str | None, make: Callable[[], nn.Module]) -> nn.Module:
    """The judge of a file, or a new one, which is left there."""
    if path is None or not Path(path).exists():
        net = make()
        if path is not None:
            np.savez(path, **{name: value.numpy() for name, value in net.state_dict().items()})
        return net
    net = ConvEncoder((1, 28, 28), (24, 48), (128,), 10)
    net.load_state_dict({name: torch.from_numpy(value) for name, value in np.load(path).items()})
    return net


@torch.no_grad()
def seen(net: nn.Module, images: np.ndarray) -> np.ndarray:
    """The class that the judge sees in each image."""
    x = torch.from_numpy(np.asarray(images, dtype=np.float32))[:, None]
    return torch.cat([net(part).argmax(1) for part in x.split(500)]).numpy()


def trained(event: pg.events.Record, data: dict, options: dict, fit: dict, seconds: float) -> MultimodalVAE:
    """A model fitted for so many seconds."""
    return MultimodalVAE.for_event(event, **options).fit(data, budget=seconds, seed=0, progress=False, **fit)


def figures(model: MultimodalVAE, x: dict, net: nn.Module, ask: tuple, kinds: dict, bound_rows: int = 300) -> dict:
    """All quality figures on held-out rows."""
    names = list(ask[0].choices)
    truth = np.array([names.index(kinds[c]) for c in x["caption"]])

    def class_of(captions: list) -> np.ndarray:
        return np.array([names.index(kinds[c]) if c in kinds else -1 for c in captions])

    spoken = model.caption(x["image"], seed=0)
    imagined = model.imagine(x["caption"], seed=0)
    by_guide = model.imagine(x["caption"], seed=0, posterior="guide")
    joint = model.sample(2 * len(truth), seed=0)
    some = {name: part[:bound_rows] for name, part in x.items()}
    asked = model.posterior_over("caption", list(ask[0].captions), given={"image": x["image"][:bound_rows]},
                                 samples=200, enough=1, seed=0)  # fmt: skip
    p = dict(zip(asked.choices, asked.p.T, strict=True))
    right = []
    for question in ask:
        rows = [i for i, c in enumerate(some["caption"]) if c in question.answers]
        if rows:
            found = question.of(np.stack([p[c] for c in question.captions], 1))[rows].argmax(1)
            wanted = question.answer([some["caption"][i] for i in rows])
            right.append(np.mean([question.choices[k] == w for k, w in zip(found, wanted, strict=True)]))
    return {
        "judge on real images": np.mean(seen(net, x["image"]) == truth),
        "image to caption, class": np.mean(class_of(spoken) == truth),
        "image to caption, exact": np.mean([a == b for a, b in zip(spoken, x["caption"], strict=True)]),
        "caption to image, class": np.mean(seen(net, imagined) == truth),
        "caption to image by the guide alone": np.mean(seen(net, by_guide) == truth),
        "joint coherence": np.mean(seen(net, joint["image"]) == class_of(joint["caption"])),
        "captions that exist": np.mean([c in kinds for c in joint["caption"]]),
        "question accuracy": np.mean(right),
        "worst question": np.min(right),
        "ELBO": model.log_prob(some, by=pg.ELBO(20), seed=0).mean().value,
        "IWAE 200": model.log_prob(some, by=pg.IWAE(200), seed=0).mean().value,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--models", default="joint,alone,poe,mopoe")
    parser.add_argument("--out")
    parser.add_argument("--judge", help="a file that keeps the judge from run to run")
    parser.add_argument("--save")
    parser.add_argument("--plot")
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = datasets.load("fashion_captions")
    ask = datasets.questions(data)
    kinds = dict(ask[0].answers)
    held = np.zeros(len(data.x["caption"]), dtype=bool)
    held[data.held] = True
    captions = np.array(data.x["caption"])
    train = {"image": data.x["image"][~held], "caption": captions[~held].tolist()}
    test = {"image": data.x["image"][held][:ROWS], "caption": captions[held][:ROWS].tolist()}
    labels = np.array([list(ask[0].choices).index(kinds[c]) for c in train["caption"]])
    net = kept(given.judge, lambda: judge(train["image"], labels))
    for name in given.models.split(","):
        options, fit = MODELS[name]
        began = time.process_time()
        model = trained(data.event, train, options, fit, given.seconds)
        spent = time.process_time() - began
        if given.save:
            pg.save(model, f"{given.save}/{name}")
        row = {"model": name, "CPU seconds": round(spent), "steps": model.report.steps}
        row |= {key: round(float(value), 4) for key, value in figures(model, test, net, ask, kinds).items()}
        print(json.dumps(row), flush=True)
        if given.out:
            with open(given.out, "a") as file:
                file.write(json.dumps(row) + "\n")
        if given.plot:
            model.plot(test, f"{given.plot}/{name}.png")


if __name__ == "__main__":
    main()
