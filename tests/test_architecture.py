"""What the layers and doors promise, beyond what import-linter checks."""

import importlib
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

import demur

SOURCE = Path(demur.__file__).parent
HEAVY = ("torch", "transformers", "datasets", "matplotlib", "peft", "scipy", "pandas")
LONGEST_FILE = 400
DOORS = sorted(module.name for module in pkgutil.iter_modules([str(SOURCE)], "demur.") if module.ispkg)


def owner(module: str) -> str | None:
    """The package that a private module belongs to; None for a public one. Dunder modules are not private."""
    parts = module.split(".")
    for index, part in enumerate(parts):
        if part.startswith("_") and not part.startswith("__"):
            return ".".join(parts[:index])
    return None


def trespasses(imports: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Imports (importer, imported) of a private module from outside the package that owns it."""
    return [
        (importer, imported)
        for importer, imported in imports
        if (package := owner(imported)) is not None and importer != package and not importer.startswith(f"{package}.")
    ]


def all_imports() -> list[tuple[str, str]]:
    graph = grimp.build_graph("demur", cache_dir=None)
    return [
        (module, other) for module in sorted(graph.modules) for other in graph.find_modules_directly_imported_by(module)
    ]


def test_private_modules_are_imported_by_their_own_package_only():
    imports = all_imports()
    assert len(imports) > 50
    assert trespasses(imports) == []


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("demur.models", "demur.models._layout", True),
        ("demur.models._probe", "demur.models._layout", True),
        ("demur.interventions._export", "demur.models._layout", False),
        ("demur.models_extra", "demur.models._layout", False),
        ("demur", "demur.models._layout", False),
        ("demur", "demur._lazy", True),
        ("demur.cli", "demur.models", True),
    ],
)
def test_the_check_of_private_modules_can_fail(importer, imported, allowed):
    assert (trespasses([(importer, imported)]) == []) is allowed


def test_no_source_file_is_long():
    lengths = {path.relative_to(SOURCE).as_posix(): len(path.read_text().splitlines()) for path in SOURCE.rglob("*.py")}
    assert len(lengths) > 50
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


def loaded_by(statement: str) -> set[str]:
    """Which heavy libraries a fresh interpreter has loaded after one statement."""
    code = f"import sys, json; {statement}; print(json.dumps(sorted(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return set(json.loads(output.splitlines()[-1])) & set(HEAVY)


@pytest.mark.parametrize("module", ["demur", "demur.errors", "demur.types"])
def test_importing_demur_is_light(module):
    assert loaded_by(f"import {module}") == set()


@pytest.mark.parametrize("module", ["demur.records", "demur.reports"])
def test_records_and_reports_need_no_torch(module):
    assert loaded_by(f"import {module}") & {"torch", "transformers", "datasets", "peft"} == set()


def test_the_check_of_light_imports_can_fail():
    assert {"torch", "transformers"} <= loaded_by("import demur.models")


def in_order(names: list[str]) -> list[str]:
    """As ruff sorts `__all__`: constants, then classes, then functions."""
    return sorted(names, key=lambda name: (not name.isupper(), not name[0].isupper(), name))


def test_every_name_of_the_top_door_is_sorted_and_resolves():
    names = list(demur.__all__)
    assert names
    assert names == in_order(names)
    assert [name for name in names if not hasattr(demur, name)] == []


@pytest.mark.parametrize("door", DOORS)
def test_every_public_package_has_a_sorted_door_whose_names_resolve(door):
    module = importlib.import_module(door)
    names = list(module.__all__)
    assert names
    assert len(set(names)) == len(names)
    assert names == in_order(names)
    assert [name for name in names if not hasattr(module, name)] == []
    assert module.__doc__


def test_no_door_hands_out_a_private_name():
    names = [f"{door}.{name}" for door in DOORS for name in importlib.import_module(door).__all__]
    assert [name for name in names if name.rpartition(".")[2].startswith("_")] == []
