"""Laws that every family obeys (see laws.py): what it is, takes and refuses, on disk as in memory."""

import ast
import contextlib
import copy
import inspect
import warnings

import numpy as np
import pyro
import pytest
import torch
from laws import (
    CASES,
    DATA,
    DOES_NOT_APPLY,
    LATENT,
    NO_GAPS,
    QUICK,
    draws,
    every,
    few,
    fitted,
    numbers,
    unfitted,
)

from probgen import store
from probgen.errors import DataError, NotFittedError, ParameterError, ProbgenError, ShapeError, StructureError
from probgen.events import Array, Table, arguments
from probgen.model import GenerativeModel, Latent, pyro_pair


def test_every_family_is_tried_on_some_event_and_every_exemption_is_of_a_family():
    assert {f for f, _ in CASES} == set(store.FAMILIES)
    assert {f for _, f in DOES_NOT_APPLY} <= set(store.FAMILIES)
    assert NO_GAPS.keys() <= set(store.FAMILIES)


@pytest.mark.parametrize("family", NO_GAPS)
def test_a_family_that_can_not_integrate_gaps_out_names_the_first_by_row_and_column(family):
    x = DATA["table"][1]
    row = int(np.ma.getmaskarray(x["length"]).argmax())
    model = unfitted(family, "table").fit({**x, "length": DATA["single"][1]}, seed=0, **QUICK.get(family, {}))
    for verb in (model.log_prob, unfitted(family, "table").fit):
        with pytest.raises(DataError, match=f"Row {row}, column length is missing") as caught:
            verb(x)
        assert caught.value.wanted
        assert caught.value.do


def test_a_flow_is_exact_on_reals_and_a_latent_model_where_cells_are_rounded():
    on = {e for f, e in LATENT if f == "Flow"}
    assert on == {"levels", "binary", "rounded", "count", "categories", "mixed"}
    assert {e for f, e in CASES if f == "Flow"} - on == {"real", "single", "positive", "unit", "reals"}


@pytest.mark.parametrize("family", store.FAMILIES)
def test_a_family_says_why_it_does_not_suit_an_event(family):
    for event, _ in DATA.values():
        why = store.family(family).suits(event)
        if why is not None:
            assert len(why) > 10
            with pytest.raises(StructureError, match="does not suit"):
                store.family(family)(event)


@every("samples")
def test_samples_pass_the_events_check(family, event):
    model = fitted(family, event)
    assert len(model.event.check(model.sample(40, seed=1))) == 40


BAD = {
    "real": [(np.array([[1.0, np.nan]]), "row 0, column 1"), (np.array([[np.inf, 0]]), "inf"),
             (np.zeros((2, 3)), r"\(2, 3\)"), (np.zeros((0, 2)), "empty"), (np.array([["a", "b"]]), "'a'"),
             (np.zeros(2), r"\(2,\)")],
    "levels": [(np.array([[0, 1, 4]]), "row 0, column 2: 4"), (np.array([[0, 1, 0.5]]), "0.5"),
               (np.array([[0, -1, 0]]), "-1")],
    "rounded": [(np.array([[0.5, 0.3]]), "0.3")],
    "positive": [(np.array([[1.0, -2.0]]), "-2.0"), (np.array([[1.0, 0.0]]), "0.0")],
    "count": [(np.array([[-1]]), "-1"), (np.array([[1.5]]), "1.5")],
    "table": [({"length": [1.0], "colour": ["pink"], "visits": [1]}, "row 0, column colour: 'pink'"),
              ({"length": [1.0], "colour": ["red"]}, "visits"),
              ({"length": ["x"], "colour": ["red"], "visits": [1]}, "'x'")],
    "series": [([np.array([0, 3])], "3"), ([], "empty|rows")],
}  # fmt: skip


@every("bad input", set(BAD))
def test_bad_input_is_refused_by_name_in_both_verbs(family, event):
    model = fitted(family, event)
    for bad, named in BAD[event]:
        for verb in (model.log_prob, copy.deepcopy(model).fit):
            if family == "BayesianNetwork" and named == "visits" and verb == model.log_prob:
                continue  # what rows to score lack is missing; a fit wants every column
            with pytest.raises(DataError, match=named) as caught:
                verb(bad)
            assert caught.value.wanted


@every("gaps", {"real", "reals"})
def test_gaps_are_integrated_out_or_refused_by_row(family, event):
    model = fitted(family, event)
    if event == "real":
        with pytest.raises(DataError, match="row 1, column 0"):
            model.log_prob([[0.0, 1.0], [None, 2.0]])
    else:
        with pytest.raises(DataError, match="column a"):
            model.log_prob({"a": [1.0, None], "b": [1.0, 2.0]})


@every("save")
def test_saved_and_loaded_models_give_the_same_bits(family, event, tmp_path):
    model = fitted(family, event)
    again = store.load(store.save(model, tmp_path / "m"))
    assert repr(again) == repr(model)
    assert again.report == model.report
    x = few(event)
    np.testing.assert_array_equal(numbers(again.log_prob(x, seed=4)), numbers(model.log_prob(x, seed=4)))
    assert draws(again, 5, seed=4) == draws(model, 5, seed=4)


@every("objective")
def test_fit_raises_its_own_objective(family, event):
    report = fitted(family, event).report
    assert len(report.objective) >= 2
    assert max(report.objective) > report.objective[0] or report.stopped in ("converged", "closed form")
    assert report.objective[-1] >= report.objective[0]
    assert report.seed == 3
    assert report.seconds > 0


@every("repr")
def test_the_repr_is_the_constructor_call(family, event):
    model = fitted(family, event)
    call = ast.parse(repr(model), mode="eval").body
    assert isinstance(call, ast.Call)
    assert call.func.id == family
    assert repr(type(model)(**arguments(model))) == repr(model)


@every("program trains")
def test_one_step_of_svi_through_pyro_pair_moves_the_parameters(family, event):
    model = copy.deepcopy(fitted(family, event))
    x = model.event.check(DATA[event][1]).x
    if family == "GAN":
        return one_step_through_the_generator(model)
    with torch.no_grad():  # away from the optimum, where gradients are zero
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1), dtype=p.dtype))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    program, guide = pyro_pair(model, "law")
    pyro.clear_param_store()
    try:
        loss = (
            pyro.infer.TraceEnum_ELBO(max_plate_nesting=1) if not isinstance(model, Latent) else pyro.infer.Trace_ELBO()
        )
        svi = pyro.infer.SVI(program, guide, pyro.optim.SGD({"lr": 1e-4}), loss)
        with pyro.validation_enabled(False), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            svi.step(x)
        assert any(name.startswith("law") for name in pyro.get_param_store())
    finally:
        pyro.clear_param_store()
    moved = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert moved
    return None


def one_step_through_the_generator(model):
    """A GAN's program draws: its parameters get gradients through the draw."""
    model.model(n=4).to(torch.float32).sum()
    z = torch.randn(4, model.latent_dim)
    model._generate(z).sum().backward()
    assert all(p.grad is not None for p in model.generator.parameters())


@pytest.mark.parametrize("family", store.FAMILIES)
def test_a_family_is_final_and_keeps_the_verbs(family):
    made = store.family(family)
    with pytest.raises(TypeError, match="final"):
        type("Mine", (made,), {})
    assert made.fit is GenerativeModel.fit
    assert made.log_prob is GenerativeModel.log_prob


def test_verbs_can_not_be_overridden_nor_submodules_bear_their_names():
    with pytest.raises(TypeError, match="verbs are final"):
        type("Mine", (GenerativeModel,), {"fit": lambda self: self})
    with pytest.raises(StructureError, match="sample"):
        fitted("Mixture", "real").sample = 3


@every("arguments")
def test_wrong_arguments_are_refused(family, event):
    fresh = unfitted(family, event)
    for verb in (lambda: fresh.sample(3), lambda: fresh.log_prob(DATA[event][1])):
        with pytest.raises(NotFittedError, match="fit"):
            verb()
    model = fitted(family, event)
    for n in (0, -3, 2.5, "2", True):
        with pytest.raises(ParameterError, match="n="):
            model.sample(n)
    with pytest.raises(ParameterError, match="seed"):
        model.sample(2, seed=-1)
    with pytest.raises(ParameterError, match="has no option 'stepz'"):
        model.fit(DATA[event][1], stepz=3)
    with pytest.raises(ParameterError, match="given"):
        model.log_prob(DATA[event][1], given=[1])
    with pytest.raises(ParameterError, match="by="):
        model.log_prob(DATA[event][1], by="iwae")


@every("foreign events")
def test_data_of_another_event_are_refused_not_crashed(family, event):
    model = fitted(family, event)
    for other, (about, x) in DATA.items():
        with contextlib.suppress(ProbgenError):
            assert len(model.log_prob(few(other, 5) if isinstance(about, Array | Table) else x)) > 0, other


def test_the_options_of_fit_are_keyword_only_and_documented():
    for name in store.FAMILIES:
        parameters = inspect.signature(store.family(name)._fit).parameters
        assert parameters["generator"].kind is inspect.Parameter.KEYWORD_ONLY
        if len(parameters) > 4:
            assert store.family(name)._fit.__doc__


def test_wrong_width_names_both_shapes():
    with pytest.raises(ShapeError, match=r"\(4, 3\).*\(n, 2\)"):
        fitted("Mixture", "real").log_prob(np.zeros((4, 3)))
