"""Suites for tests, as text and as files."""

from pathlib import Path

from demur.assurance import Suite, load_suite


def suite_text(cases: str, *, head: str = "") -> str:
    """A suite with the given cases, each written as one YAML flow object a line."""
    lines = "\n".join(f"  - {line.strip()}" for line in cases.strip().splitlines())
    return f"schema: demur.suite/1\nname: small\nmax_new_tokens: 24\n{head}\ncases:\n{lines}\n"


def written_suite(folder: Path, cases: str, *, head: str = "", name: str = "small.suite.yaml") -> Path:
    path = folder / name
    path.write_text(suite_text(cases, head=head))
    return path


def suite_of(folder: Path, cases: str, *, head: str = "") -> Suite:
    return load_suite(written_suite(folder, cases, head=head))
