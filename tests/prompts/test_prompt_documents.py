"""The generated page about prompt sets is the one in the repository."""

import importlib.util
from pathlib import Path

from demur.prompts import named_mixes, published_sets

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_current():
    spec = importlib.util.spec_from_file_location("generate_prompts", DOCS / "generate_prompts.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (DOCS / "prompts.md").read_text(encoding="utf-8")
    assert page == module.document(), "run python docs/generate_prompts.py"
    for name in [one.source for one in published_sets()] + [f"mix:{mix.name}" for mix in named_mixes()]:
        assert name in page
