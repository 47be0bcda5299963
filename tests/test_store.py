"""Models on disk: the same bits back, damage found, nothing executed, wholly old or wholly new."""

import ast
import errno
import io
import json
import math
import os
import sys
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import probgen as pg
from probgen import emissions, frames, store
from probgen.errors import NotFittedError, ProbgenError, StoreError
from probgen.events import Array, Category, Count, Real, Series, Table
from probgen.logprob import Kind

RNG = np.random.default_rng(7)
REALS = RNG.normal(size=(40, 2))
LEVELS = RNG.integers(0, 3, size=(40, 3))
FRAME = pd.DataFrame({"size": REALS[:, 0], "kind": np.where(LEVELS[:, 0] == 0, "é", "b"), "count": LEVELS[:, 1]})
MIXED = {"size": Real(unit="cm"), "kind": Category(("é", "b", "never seen")), "count": Count()}
GAPS = FRAME.assign(size=FRAME["size"].where(LEVELS[:, 2] > 0))
PAIR = Table({name: MIXED[name] for name in ("size", "kind")})
EM = {"restarts": 1, "max_iter": 5}
FAMILIES = {
    "mixture of normals": lambda: pg.Mixture(Array((2,)), 2).fit(REALS, seed=1, **EM),
    "mixture of diagonal normals": lambda: pg.Mixture(Array((2,)), 3, emissions.Normal(2, "diag")).fit(
        REALS, seed=1, **EM
    ),
    "mixture of lognormals": lambda: pg.Mixture(Array((2,), "positive"), 2).fit(np.exp(REALS), seed=1, **EM),
    "mixture of categoricals": lambda: pg.Mixture(Array((3,), levels=(3, 4, 3)), 2).fit(LEVELS, seed=1, **EM),
    "mixture of counts": lambda: pg.Mixture(Array((3,), "count"), 2).fit(LEVELS, seed=1, **EM),
    "mixture of rounded reals": lambda: pg.Mixture(Array((2,), resolution=0.1), 2).fit(
        np.round(REALS, 1), seed=1, **EM
    ),
    "mixture of products": lambda: pg.Mixture(Table(MIXED), 2).fit(GAPS, seed=1, **EM),
    "independent reals": lambda: pg.Independent(Array((2,))).fit(REALS, seed=1),
    "independent table": lambda: pg.Independent(Table(MIXED)).fit(GAPS, seed=1),
    "copula": lambda: pg.GaussianCopula(Array((2,))).fit(REALS, seed=1),
    "kernels on reals": lambda: pg.KernelDensity(Array((2,)), centres=20).fit(REALS, seed=1),
    "kernels on a table": lambda: pg.KernelDensity(PAIR).fit(FRAME[["size", "kind"]], seed=1),
    "vae": lambda: pg.VAE(Array((2,)), 2, (4, 3)).fit(REALS, seed=1, steps=6),
    "vae on levels": lambda: pg.VAE(Array((3,), levels=3), 2, (4,)).fit(LEVELS, seed=1, steps=6),
    "gan": lambda: pg.GAN(Array((2,)), 2, (4,), penalty=0.25).fit(REALS, seed=1, steps=6),
}
fitted = cache(lambda name: FAMILIES[name]())
TINY = "mixture of normals"


def rows_for(model):
    """New rows, not those of the fit, some far out, in the event's form."""
    if isinstance(model.event, Table):
        frame = FRAME[list(model.event.columns)].iloc[::-1].reset_index(drop=True)
        return frame.assign(size=frame["size"] * 1.37)
    if model.event.levels:
        return LEVELS[::-1]
    if model.event.support == "count":
        return LEVELS[::-1] * 7
    rows = np.vstack([REALS[:20] * 1.37, [[50.0, -50.0]]])
    return np.exp(rows) if model.event.support == "positive" else np.round(rows, 1) if model.event.resolution else rows


def bits(model):
    return {name: (t.dtype, t.shape, t.numpy().tobytes()) for name, t in model.state_dict().items()}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def saved(tmp_path):
    return store.save(fitted(TINY), tmp_path / "saved")


@pytest.fixture
def forge(saved, tmp_path):
    """A folder whose card and tensors were changed, under a checksum that is right for them."""
    from safetensors import numpy as format_

    def make(change=lambda about, tensors: None, payload=None, source=saved):
        about, tensors = store.read(source)
        change(about, tensors)
        with pytest.MonkeyPatch.context() as patch:
            if payload is not None:
                patch.setattr(format_, "save", lambda _: payload)
            return store.write(tmp_path / "forged", tensors, about)

    return make


# The same bits back


@pytest.mark.parametrize("name", FAMILIES)
def test_a_loaded_model_gives_the_same_scores_and_samples_bit_for_bit(name, tmp_path):
    model = fitted(name)
    again = pg.load(pg.save(model, tmp_path / "m"))
    before, after = (m.log_prob(rows_for(model)[:6], seed=3) for m in (model, again))
    assert before.kind == after.kind
    if before.kind is not Kind.UNAVAILABLE:
        assert np.asarray(before.nats).tobytes() == np.asarray(after.nats).tobytes()
        assert np.isfinite(before.nats).all()
    draws = [pd.DataFrame(m.sample(9, seed=4)) for m in (model, again)]
    pd.testing.assert_frame_equal(*draws, check_exact=True)
    assert type(model.sample(1)) is type(again.sample(1))


@pytest.mark.parametrize("name", FAMILIES)
def test_repr_card_tensors_report_and_event_come_back(name, tmp_path):
    model = fitted(name)
    again = store.load(store.save(model, tmp_path / "m"))
    first, second = ({k: v for k, v in store.card(m).items() if k != "saved"} for m in (model, again))
    assert first == second
    assert repr(again) == repr(model)
    assert again.report == model.report
    assert again.event == model.event
    assert bits(again) == bits(model)
    assert not again.training


def test_the_card_is_plain_json_that_names_family_call_fit_and_versions(saved):
    about = json.loads((saved / "card.json").read_text())
    assert about["family"] == "Mixture"
    assert about["repr"] == repr(fitted(TINY))
    assert about["parameters"] == sum(p.numel() for p in fitted(TINY).parameters())
    assert about["versions"]["torch"] == torch.__version__
    assert sorted(p.name for p in saved.iterdir()) == sorted(["card.json", about["tensors"]])


def test_a_mixture_keeps_its_information_criteria(saved):
    assert (store.load(saved).aic(), store.load(saved).bic()) == (fitted(TINY).aic(), fitted(TINY).bic())


def test_numbers_that_json_lacks_come_back(tmp_path):
    model = FAMILIES["independent reals"]()
    model.report = replace(model.report, objective=(-math.inf, math.nan, math.inf, np.float64(0.1)), notes=("ünï",))
    again = store.load(store.save(model, tmp_path / "m")).report
    assert repr(again.objective) == "(-inf, nan, inf, 0.1)"
    assert again.notes == ("ünï",)


@pytest.mark.parametrize("levels", [(True, False), (3, 1, 2), (0.5, 1e-300), ("", "é\U0001f600", "x" * 999)])
def test_levels_of_any_plain_type_come_back_as_they_were(levels, tmp_path):
    model = pg.Independent(Table({"c": Category(levels)}))
    model.fit({"c": np.array([*levels, *levels], dtype=object)}, seed=0)
    again = store.load(store.save(model, tmp_path / "m"))
    assert [(type(v), v) for v in again.event.columns["c"].levels] == [(type(v), v) for v in levels]


def test_a_second_save_replaces_the_first_and_leaves_no_litter(tmp_path):
    for name in ("vae", "gan", "gan"):
        store.save(fitted(name), tmp_path / "m")
        assert store.load(tmp_path / "m").state_dict().keys() == fitted(name).state_dict().keys()
        assert len(list((tmp_path / "m").iterdir())) == 2


def test_a_family_is_found_whatever_the_letter_case():
    assert store.family("MIXTURE") is pg.Mixture
    with pytest.raises(StoreError, match="Did you mean 'Mixture'"):
        store.family("Mixtur")


# Damage


def survivors(folder, name, damaged):
    """Damaged versions of one file that load without a StoreError; any other error escapes."""
    path, alive = folder / name, []
    for label, data in damaged:
        path.write_bytes(data)
        try:
            store.load(folder)
            alive.append(label)
        except StoreError:
            pass
    return alive


def file_of(folder, which):
    return json.loads((folder / "card.json").read_bytes())["tensors"] if which == "tensors" else "card.json"


@pytest.mark.parametrize("which", ["card", "tensors"])
def test_a_file_cut_anywhere_is_found(saved, which):
    name = file_of(saved, which)
    whole = (saved / name).read_bytes()
    assert survivors(saved, name, ((n, whole[:n]) for n in range(len(whole)))) == []


@pytest.mark.parametrize("which", ["card", "tensors"])
def test_a_flipped_bit_is_found_in_every_byte(tmp_path, which):
    model = FAMILIES[TINY]()
    model.report = replace(model.report, seconds=0.1 + 0.2, objective=(-1e-05,))  # 17 digits, an exponent
    folder = store.save(model, tmp_path / "m")
    name = file_of(folder, which)
    whole = (folder / name).read_bytes()

    def flipped():
        for i in range(len(whole)):
            for bit in {0, 5, i % 8}:  # the last digit's, the letter case's, and all others in turn
                data = bytearray(whole)
                data[i] ^= 1 << bit
                yield f"{whole[max(0, i - 12) : i + 1]!r} -> {bytes(data[i : i + 1])!r}", data

    assert survivors(folder, name, flipped()) == []


@pytest.mark.parametrize("which", ["card", "tensors"])
def test_bytes_added_or_blanked_are_found(saved, which):
    name = file_of(saved, which)
    whole = (saved / name).read_bytes()
    damaged = [("longer", whole + b"x"), ("zeros", bytes(len(whole))), ("twice", whole * 2), ("hole", whole[:99])]
    assert survivors(saved, name, damaged) == []


@pytest.mark.parametrize("which", ["card", "tensors"])
def test_a_missing_file_is_named(saved, which):
    name = file_of(saved, which)
    (saved / name).unlink()
    with pytest.raises(StoreError, match=name):
        store.load(saved)


def test_a_folder_that_is_missing_empty_or_a_file_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("hello")
    for name in ("missing", "empty", "file", "file/below", "nul\0byte", "x" * 5000):
        with pytest.raises(StoreError):
            store.load(tmp_path / name)


def test_the_tensors_of_another_model_do_not_pass(saved, tmp_path):
    other = store.save(FAMILIES[TINY]().fit(REALS * 2, seed=2, **EM), tmp_path / "other")
    (saved / file_of(saved, "tensors")).write_bytes((other / file_of(other, "tensors")).read_bytes())
    with pytest.raises(StoreError, match="checksum"):
        store.load(saved)


@pytest.mark.parametrize(
    "text",
    [
        b"", b" ", b"no json", b"[]", b"null", b"5", b'"card"', b"\xff\xfe\x00", b"{}", b'{"format": 1}',
        b'{"format": "1"}', b'{"format": null}', b'{"format": NaN}', b'{"format": 1e999}', b'{"format": 1, "x": NaN}',
        b'{"format": 1, "tensors": "\\u0000"}', b'{"format": 1, "tensors": "\\ud834"}', b'{"format": 1, "tensors": ""}',
        b'{"format": 1, "tensors": ".."}', b'{"format": 1, "tensors": ["a"]}', b'{"format": ' + b"9" * 5000 + b"}",
        b"[" * 100_000, b'{"a":' * 100_000, b'{"format": 1, "x": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    ],
)  # fmt: skip
def test_a_card_that_is_none_is_refused(saved, text):
    (saved / "card.json").write_bytes(text)
    with pytest.raises(StoreError):
        store.load(saved)


def test_a_huge_card_is_refused_unread(saved, monkeypatch):
    with open(saved / "card.json", "r+b") as file:
        file.truncate((1 << 24) + 1)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read"))
    with pytest.raises(StoreError, match="16 MiB"):
        store.load(saved)


# Cards under a right checksum, made by someone else


def test_a_forged_folder_without_a_change_loads(forge):
    assert bits(store.load(forge())) == bits(fitted(TINY))


def put(*path):
    """A change of the card: the last item goes where the others lead."""
    *way, last, value = path

    def change(about, tensors):
        for step in way:
            about = about[step]
        about[last] = value

    return change


def drop(name):
    return lambda about, tensors: about.pop(name)


def nested(depth):
    value = 0
    for _ in range(depth):
        value = [value]
    return value


def dictionary(**items):
    return {"dict": [[name, value] for name, value in items.items()]}


def event(**changes):
    plain = {"shape": [2], "support": "real", "levels": None, "resolution": None, "unit": "", "missing": False}
    return put("arguments", "event", {"part": "Array", "arguments": {**plain, **changes}})


FORGED = {
    "a newer format": put("format", store.FORMAT + 1),
    "a format that is a word": put("format", "1"),
    "a fractional format": put("format", 1.0),
    "no format": drop("format"),
    "another kind of content": put("what", "checkpoint"),
    "no kind of content": drop("what"),
    "no family": drop("family"),
    "an unknown family": put("family", "Oracle"),
    "a dotted family": put("family", "os.system"),
    "a dotted path to a real family": put("family", "probgen.models.mixture.Mixture"),
    "a family that is a builtin": put("family", "eval"),
    "a family that is a list": put("family", ["Mixture"]),
    "a family that is an object": put("family", {"Mixture": 1}),
    "a family that is null": put("family", None),
    "another family": put("family", "VAE"),
    "a part that is no part": put("arguments", "event", "part", "Popen"),
    "a dotted part": put("arguments", "event", "part", "os.system"),
    "a part from the same module": put("arguments", "event", "part", "infer"),
    "a part that is a list": put("arguments", "event", "part", ["Array"]),
    "a part that is null": put("arguments", "event", "part", None),
    "a part without arguments": put("arguments", "event", {"part": "Array"}),
    "a part with unknown arguments": event(color="red"),
    "an emission as event": put("arguments", "event", {"part": "Normal", "arguments": {"dim": 2}}),
    "an event that is a number": put("arguments", "event", 5),
    "an event of an infinite shape": event(shape=[{"float": "inf"}]),
    "an event of a nan shape": event(shape=[{"float": "nan"}]),
    "an event of another width": event(shape=[3]),
    "an event of a shape too large for memory": event(shape=[2**58]),
    "an event of an unknown support": event(support="moon"),
    "a float that is none": put("arguments", "components", {"float": "2"}),
    "a float that is a list": put("arguments", "components", {"float": []}),
    "a dict with a list as key": put("arguments", "components", {"dict": [[[1], 2]]}),
    "a dict of triples": put("arguments", "components", {"dict": [[1, 2, 3]]}),
    "no arguments": drop("arguments"),
    "arguments in a list": put("arguments", [1]),
    "an unknown argument": put("arguments", "color", "red"),
    "a wrong argument": put("arguments", "components", -1),
    "an argument of the wrong type": put("arguments", "components", "two"),
    "more components than fit in memory": put("arguments", "components", 2**58),
    "more components than fit in 64 bits": put("arguments", "components", 2**70),
    "other levels than cells": put(
        "arguments", "emission", {"part": "Categorical", "arguments": {"levels": [2, 2, 2], "width": 2}}
    ),
    "nesting of depth 150": put("arguments", "components", nested(150)),
    "nesting of depth 300": put("arguments", "components", nested(300)),
    "nesting of depth 600": put("arguments", "components", nested(600)),
    "nesting of depth 800": put("arguments", "components", nested(800)),
    "no extras": drop("extras"),
    "extras that are a number": put("extras", 5),
    "extras that replace a verb": put("extras", dictionary(fit=1)),
    "extras that replace a method": put("extras", dictionary(eval=1)),
    "extras that replace another method": put("extras", dictionary(weights=1)),
    "extras that replace the event": put("extras", dictionary(event="nonsense")),
    "extras that replace the parameters": put("extras", dictionary(_parameters=dictionary())),
    "extras that replace the class": put("extras", dictionary(__class__="x")),
    "no fit": drop("fit"),
    "a fit that is a list": put("fit", [1]),
    "a fit without fields": put("fit", dictionary()),
    "a fit with unknown fields": put("fit", dictionary(objective=[], steps=1, stopped="steps", color="red")),
    "no form": drop("form"),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_card_gives_a_store_error_and_nothing_else(forge, name):
    folder = forge(FORGED[name])
    with pytest.raises(StoreError):
        store.load(folder)


def test_a_tensor_file_outside_the_folder_is_not_opened(hook, saved, tmp_path):
    name, card = file_of(saved, "tensors"), saved / "card.json"
    (saved / name).rename(tmp_path / name)
    text = card.read_text()
    for path in (f"../{name}", str(tmp_path / name)):
        card.write_text(text.replace(f'"{name}"', json.dumps(path)))
        with watched() as events, pytest.raises(StoreError):
            store.load(saved)
        opened = [Path(args[0]).resolve() for event, args in events if event == "open" and not isinstance(args[0], int)]
        assert card in opened
        assert tmp_path / name not in opened


@pytest.mark.parametrize("name", ["mixture of normals", "kernels on reals", "vae"])
@pytest.mark.parametrize("what", ["extra", "missing", "renamed", "none"])
def test_tensors_that_are_not_the_models_are_refused(forge, tmp_path, name, what):
    def change(about, tensors):
        first = next(iter(tensors))
        value = tensors.pop(first) if what in ("missing", "renamed") else tensors[first]
        if what in ("extra", "renamed"):
            tensors["other.weight"] = value
        if what == "none":
            tensors.clear()

    folder = forge(change, source=store.save(fitted(name), tmp_path / "m"))
    with pytest.raises(StoreError, match=r"missing or unknown"):
        store.load(folder)


SERIES = [REALS[:15], REALS[15:40]]
WITH_DRAWS = {
    "Mixture": lambda: fitted(TINY),
    "Standardize": lambda: pg.Standardize(pg.Mixture(Array((2,)), 2)).fit(REALS, seed=1, **EM),
    "HMM": lambda: pg.HMM(states=2, emission=emissions.Normal(2)).fit(SERIES, seed=1, restarts=1, max_iter=3),
    "StateSpace": lambda: pg.StateSpace(Series((2,)), 1).fit(SERIES, seed=1, restarts=1, max_iter=3),
    "BayesianNetwork": lambda: pg.BayesianNetwork(PAIR, edges=[("kind", "size")]).fit(FRAME[["size", "kind"]]),
    "Regression": lambda: pg.Regression(Array(()), context=Array((1,))).fit(REALS[:, 1], given=REALS[:, :1], seed=1),
}


@pytest.mark.parametrize("name", WITH_DRAWS)
def test_a_folder_from_before_draws_were_kept_is_that_of_a_point_fit(name, forge, tmp_path):
    model = WITH_DRAWS[name]()
    source = store.save(model, tmp_path / "m")

    def older(about, tensors):
        kept = [key for key in tensors if "kept." in key]
        assert len(kept) == 3
        for key in kept:
            del tensors[key]

    again = store.load(forge(older, source=source))
    assert bits(again) == bits(model)
    with pytest.raises(StoreError, match=r"kept\.facts.* missing or unknown"):
        store.load(
            forge(lambda _, tensors: tensors.pop(next(k for k in tensors if k.endswith("kept.facts"))), None, source)
        )


def test_tensors_of_another_version_are_refused_with_that_version_and_what_to_do(forge):
    def change(about, tensors):
        about["versions"]["probgen"] = "0.0.7"
        tensors["gone"] = torch.zeros(2)

    with pytest.raises(StoreError, match=r"saved by probgen 0\.0\.7: its tensors \['gone'\].*fit the model again"):
        store.load(forge(change))


DTYPES = (
    "float16",
    "float32",
    "bool",
    "uint8",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint16",
    "uint32",
    "uint64",
    "complex64",
)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tensor_of_another_dtype_is_refused(forge, dtype):
    def change(about, tensors):
        tensors["logits"] = tensors["logits"].to(getattr(torch, dtype))

    with pytest.raises(StoreError):
        store.load(forge(change))


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_a_tensor_of_a_dtype_that_numpy_lacks_is_refused(forge, saved, dtype):
    from safetensors.torch import save

    tensors = store.read(saved)[1]
    tensors["logits"] = tensors["logits"].to(getattr(torch, dtype))
    folder = forge(payload=save(tensors))
    with pytest.raises(StoreError):
        store.load(folder)


@pytest.mark.parametrize(
    "payload", [b"", b"x", b"\xff" * 64, b"\x02" + bytes(7) + b"{}x", b"\x08" + bytes(7) + b"[[[[[[[["]
)
def test_tensors_that_are_no_safetensors_are_refused(forge, payload):
    folder = forge(payload=payload)
    with pytest.raises(StoreError):
        store.load(folder)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("mixture of normals", "logits"),
        ("vae", "encoder.net.layers.0.weight"),
        ("vae", "features.centre"),
        ("gan", "cells.spread"),
        ("kernels on reals", "log_bandwidth"),
        ("kernels on reals", "scale"),
    ],
)
def test_a_tensor_of_an_impossible_shape_is_refused(forge, tmp_path, name, tensor):
    def change(about, tensors):
        tensors[tensor] = torch.ones(3, 5, 7, dtype=tensors[tensor].dtype)

    folder = forge(change, source=store.save(fitted(name), tmp_path / "m"))
    with pytest.raises(StoreError):
        store.load(folder)


# Saving


def test_an_unfitted_model_is_not_saved(tmp_path):
    with pytest.raises(NotFittedError):
        store.save(pg.VAE(Array((2,)), 2, (4,)), tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_model_with_an_unknown_part_is_not_saved(tmp_path):
    model = FAMILIES["independent reals"]()
    model.form = object()
    model.event = Array((2,), unit=Path("cm"))
    with pytest.raises(StoreError, match="can't be saved"):
        store.save(model, tmp_path / "m")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    "files",
    [
        {"notes.txt": b"mine"},
        {"other.safetensors": b"mine"},
        {".hidden": b"mine"},
        {"card.json": b'{"my": "card"}', "model.safetensors": b"mine"},
        {"card.json": b"no json", "notes.txt": b"mine"},
    ],
)
def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path, files):
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(StoreError):
        store.save(fitted(TINY), tmp_path)
    assert contents(tmp_path) == files


def test_a_users_file_beside_a_model_survives_a_save(saved):
    (saved / "mine.safetensors").write_bytes(b"mine")
    with suppress(StoreError):
        store.save(fitted("gan"), saved)
    assert (saved / "mine.safetensors").read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["file", "file/below", "file/below/further"])
def test_a_file_in_the_way_is_refused_and_left_alone(tmp_path, name):
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(StoreError, match="can't be made"):
        store.save(fitted(TINY), tmp_path / name)
    assert contents(tmp_path) == {"file": b"mine"}


def test_a_folder_that_holds_a_folder_named_like_the_card_is_refused(tmp_path):
    (tmp_path / "card.json").mkdir()
    with pytest.raises(StoreError):
        store.save(fitted(TINY), tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "card.json"]


def test_missing_folders_above_are_made(tmp_path):
    assert bits(store.load(store.save(fitted("gan"), tmp_path / "a" / "b" / "c"))) == bits(fitted("gan"))


class Failing:
    """Raises at the k-th call of one function of a save; ``killed`` also forbids cleaning up behind it."""

    def __init__(self, patch, what, at, problem, killed=False):
        self.calls, self.at, self.problem, self.down = 0, at, problem, False
        module, name = (frames.files, "open") if what in ("open", "write") else (os, what)
        real = getattr(module, name, open)
        patch.setattr(module, name, self.opener(what) if name == "open" else self.guard(real), raising=False)
        if killed:
            unlink = os.unlink
            patch.setattr(os, "unlink", lambda *a, **k: None if self.down else unlink(*a, **k))

    def guard(self, real):
        def call(*args, **kwargs):
            self.calls += 1
            if self.calls == self.at:
                self.down = True
                raise self.problem
            return real(*args, **kwargs)

        return call

    def opener(self, what):
        return self.guard(open) if what == "open" else lambda path, mode: HalfWritten(path, mode, self)


class HalfWritten(io.FileIO):
    """A file on a disk that fills up: the failing write takes half of its bytes first."""

    def __init__(self, path, mode, failing):
        super().__init__(path, mode)
        self.failing = failing

    def write(self, data):
        if self.failing.calls + 1 == self.failing.at:
            super().write(data[: len(data) // 2])
        return self.failing.guard(super().write)(data)


def attempt(model, folder, what, at, problem=None, killed=False):
    """Saves with the k-th call failing: whether the save returned, and whether the failure was reached."""
    returned = False
    with pytest.MonkeyPatch.context() as patch:
        failing = Failing(patch, what, at, problem or OSError(errno.ENOSPC, "No space left on device"), killed)
        with suppress(StoreError, KeyboardInterrupt):
            store.save(model, folder)
            returned = True
    return returned, failing.calls >= at


@pytest.mark.parametrize("killed", [False, True], ids=["error", "kill"])
@pytest.mark.parametrize("what", ["open", "write", "fsync", "replace"])
def test_a_save_that_fails_anywhere_leaves_the_old_or_the_new_model(tmp_path, what, killed):
    old, new = fitted("independent reals"), fitted("mixture of normals")
    for at in range(1, 9):
        folder = tmp_path / str(at)
        store.save(old, folder)
        returned, reached = attempt(new, folder, what, at, killed=killed)
        found = store.load(folder)
        assert bits(found) == bits(new if isinstance(found, pg.Mixture) else old)
        assert found.report == (new if isinstance(found, pg.Mixture) else old).report
        assert isinstance(found, pg.Mixture) or not returned
        if not killed:
            assert not [p for p in folder.iterdir() if p.suffix == ".tmp"]
        assert bits(store.load(store.save(new, folder))) == bits(new)
        if not reached:
            break
    assert not reached
    assert at > 2


@pytest.mark.parametrize("killed", [False, True], ids=["error", "kill"])
@pytest.mark.parametrize("what", ["open", "write", "fsync", "replace"])
def test_a_first_save_that_fails_leaves_no_model_and_can_be_repeated(tmp_path, what, killed):
    for at in range(1, 9):
        folder = tmp_path / str(at)
        returned, reached = attempt(fitted(TINY), folder, what, at, killed=killed)
        if not returned:
            with pytest.raises(StoreError):
                store.load(folder)
        assert bits(store.load(store.save(fitted(TINY), folder))) == bits(fitted(TINY))
        if not reached:
            break
    assert not reached
    assert at > 2


@pytest.mark.parametrize("what", ["open", "write", "fsync", "replace"])
def test_ctrl_c_in_a_save_leaves_the_old_or_the_new_model_and_no_litter(tmp_path, what):
    old, new = fitted("independent reals"), fitted("mixture of normals")
    for at in (1, 2):
        folder = store.save(old, tmp_path / str(at))
        returned, reached = attempt(new, folder, what, at, KeyboardInterrupt())
        assert reached
        assert not returned
        found = store.load(folder)
        assert bits(found) == bits(new if isinstance(found, pg.Mixture) else old)
        assert not [p for p in folder.iterdir() if p.suffix == ".tmp"]


def test_a_stale_file_that_can_not_be_removed_does_not_fail_the_save(saved, monkeypatch):
    def refuse(path, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    with suppress(StoreError):
        store.save(fitted("gan"), saved)
    assert bits(store.load(saved)) == bits(fitted("gan"))


# Nothing is executed

EVENTS, SWITCH = [], {}


def watch(name, args):
    if SWITCH.get("on"):
        EVENTS.append((name, args))


@pytest.fixture(scope="module")
def hook():
    """The audit hook: it can't be taken out again, so it has a switch."""
    if not SWITCH:
        SWITCH["on"] = False
        sys.addaudithook(watch)


@contextmanager
def watched():
    EVENTS.clear()
    SWITCH["on"] = True
    try:
        yield EVENTS
    finally:
        SWITCH["on"] = False


BANNED = (
    "exec",
    "compile",
    "import",
    "pickle.",
    "marshal.",
    "subprocess.",
    "socket.",
    "ctypes.",
    "os.",
    "shutil.",
    "code.",
)
READING = {"os.listdir", "os.scandir"}


def banned(events):
    """Events of a load that no load needs: code, processes, sockets, anything written."""
    found = []
    for name, args in events:
        writes = name == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes or (name.startswith(BANNED) and name not in READING):
            found.append((name, args))
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_loading_runs_no_code_and_writes_nothing(hook, tmp_path, name):
    folder = store.save(fitted(name), tmp_path / "m")
    store.load(folder)  # imports happen here
    with watched() as events:
        store.load(folder)
    assert any(event == "open" for event, _ in events)
    assert banned(events) == []


@pytest.mark.parametrize("name", ["a dotted family", "a dotted part", "a family that is a builtin", "a newer format"])
def test_a_forged_name_is_never_imported(hook, forge, name):
    folder = forge(FORGED[name])
    with pytest.raises(StoreError):
        store.load(folder)
    with watched() as events, pytest.raises(StoreError):
        store.load(folder)
    assert banned(events) == []


@pytest.mark.parametrize(
    "act", [lambda p: exec("1"), lambda p: open(p, "w").close(), lambda p: os.system("true"), lambda p: os.remove(p)]
)
def test_the_watch_sees_what_it_is_for(hook, tmp_path, act):
    (tmp_path / "x").touch()
    with watched() as events:
        act(tmp_path / "x")
    assert banned(events) != []


MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle"}


def dangerous(source):
    """Lines of a module that can run a file's content: pickle and its kin, torch.load, builtin eval and exec."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Name) and node.id in {"eval", "exec", "compile", "__import__", "execfile"}:
            found.append(node.lineno)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names = [f"{node.value.id}.{node.attr}"]
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            found += [] if isinstance(node.value, ast.Constant) and node.value.value is False else [node.lineno]
        bad = {"torch.load", "torch.save", "builtins.eval", "builtins.exec", "pandas.read_pickle", "pd.read_pickle"}
        found += [node.lineno for name in names if name in bad or name.partition(".")[0] in MODULES]
    return found


SOURCES = sorted(Path(store.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=[p.stem for p in SOURCES])
def test_no_module_unpickles_or_evaluates(path):
    assert dangerous(path.read_text()) == []


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("import pickle", [1]),
        ("from joblib import load", [1, 1]),
        ("import numpy.core\nfrom torch import load", [2]),
        ("def f():\n    return torch.load('x')", [2]),
        ("eval('1')", [1]),
        ("x = exec", [1]),
        ("np.load(p, allow_pickle=True)", [1]),
        ("np.load(p, allow_pickle=False)", []),
        ("model.eval()\nevaluate(1)\nself.load(x)\nre.compile('x')", []),
    ],
)
def test_the_source_check_sees_what_it_is_for(source, lines):
    assert dangerous(source) == lines


def test_a_store_error_is_one_of_the_librarys_with_a_code():
    assert issubclass(StoreError, ProbgenError)
    assert StoreError.code == "store"
