"""The house: who may import whom, one door for each outside library, nothing heavy at import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from importlinter.cli import lint_imports

import probgen
from probgen import store

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "probgen").rglob("*.py"))
DOORS = {
    "PIL": {"datasets/folders.py"},
    "arviz": {"evaluate/arviz.py"},
    "dask": {"evaluate/table"},
    "diffusers": {"foreign/diffusers.py"},
    "distributed": {"evaluate/table"},
    "hmmlearn": {"foreign/hmmlearn.py"},
    "matplotlib": {"plots"},
    "narwhals": {"frames"},
    "pgmpy": {"foreign/pgmpy"},
    "pyarrow": {"frames"},
    "rich": {"cli/outputs.py", "training"},  # the progress display stands with the training loop
    "safetensors": {"store.py"},
    "sklearn": {"datasets/real.py", "evaluate/sklearn.py", "foreign/sklearn.py"},
    "tokenizers": {"events"},
    "torchvision": set(),
    "transformers": {"foreign/transformers.py"},
    "typer": {"cli/app.py", "cli/commands"},
    "zuko": {"bijections.py"},
}
FORBIDDEN = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "torchvision"}


def imports(path):
    """Dotted names of everything that a file imports, lazily or not."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def trespasses(path, room):
    return [
        name
        for name in imports(path)
        if (library := name.partition(".")[0]) in FORBIDDEN or (library in DOORS and room not in DOORS[library])
    ]


def room_of(path):
    room = path.relative_to(ROOT / "probgen").as_posix()
    folders = ("cli/commands", "evaluate/table", "events", "foreign/pgmpy", "frames", "plots", "training")
    return next((folder for folder in folders if room.startswith(f"{folder}/")), room)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_outside_libraries_come_in_by_their_doors(path):
    assert trespasses(path, room_of(path)) == []


def test_process_groups_have_one_door():
    users = {room_of(path) for path in FILES if any(name.startswith("torch.distributed") for name in imports(path))}
    assert users == {"ranks.py"}  # torch.distributed is no prefix of torch.distributions


def test_a_planted_trespass_is_seen(tmp_path):
    planted = tmp_path / "planted.py"
    planted.write_text("def f():\n    from sklearn.mixture import GaussianMixture\n    import pickle\n")
    assert trespasses(planted, "models/mixture.py") == ["sklearn.mixture", "sklearn.mixture.GaussianMixture", "pickle"]


def test_arrows_only_fall(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    assert lint_imports("setup.cfg", no_cache=True) == 0, capsys.readouterr().out


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_file_is_two_rooms_nor_asserts_on_a_users_input(path):
    text = path.read_text()
    assert text.count("\n") <= 500
    assert not any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(text)))


def loaded_by(code):
    script = f"{code}\nimport sys; print(*sorted({{m.partition('.')[0] for m in sys.modules}}))"
    return set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )


def test_importing_the_face_loads_nothing_heavy():
    heavy = {"torch", "pyro", "scipy", "pandas", "matplotlib", "numpy", "pyarrow", "sklearn", "rich", "typer"}
    assert not loaded_by("import probgen; dir(probgen)") & heavy
    assert "torch" in loaded_by("import probgen; probgen.Mixture")  # the same look would see it


def test_the_command_line_shows_its_help_without_torch():
    assert not loaded_by("import probgen.cli") & {"torch", "pyro", "numpy", "pandas", "matplotlib"}


def test_every_name_of_the_face_is_there_and_every_family_is_in_it():
    for name in probgen.__all__:
        assert getattr(probgen, name) is not None
    assert set(store.FAMILIES) <= set(probgen.__all__)
    assert set(probgen.__all__) <= set(dir(probgen))
    assert probgen.__version__ != "unknown"
    with pytest.raises(AttributeError, match="Mixture"):
        probgen.Mixtur  # noqa: B018


def test_the_face_is_typed_as_it_is():
    tree = ast.parse((ROOT / "probgen/__init__.py").read_text())
    typed = {alias.asname for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(probgen.__all__) <= typed


def test_importing_all_rooms_leaves_validation_on():
    for name in probgen.__all__:
        getattr(probgen, name)
    with pytest.raises(ValueError, match="scale"):
        torch.distributions.Normal(0.0, -1.0)


def test_readme_has_one_line_to_try_and_one_to_test():
    text = (ROOT / "README.md").read_text()
    for heading in ("Try it", "Test it"):
        after = text[text.index(f"## {heading}") :]
        block = after[after.index("```sh\n") + 6 :]
        assert len(block[: block.index("```")].strip().splitlines()) == 1


def test_no_test_is_rerun_or_flaky():
    words = ("mark.fla" + "ky", "re" + "runs=", "mark.x" + "fail")
    assert not [p for p in (ROOT / "tests").rglob("*.py") for word in words if word in p.read_text()]
