"""The field's prompts, from a folder of their published files: pools by kind, split by hash, near copies dropped.

The folder is laid out as the files are published: `split_harmful_*.json`, `split_harmless_*.json` (Arditi et al.),
`xstest_v2_prompts.csv`, `or-bench-hard-1k.csv`. Prompts are never printed.
"""

import csv
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from demur.prompts import PromptSet, load_prompt_sets
from demur.types import PromptLabel, Split

Row = tuple[str, str]
"""Prompt and the set that it is from."""
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_SPARE = 1.6
"""Prompts drawn for each that is wanted: near copies of earlier splits are dropped."""


def published(folder: Path) -> dict[PromptLabel, list[Row]]:
    """All prompts of a folder of published files, by kind."""

    def split_files(label: str) -> list[Row]:
        parts = [folder / f"split_{label}_{part}.json" for part in ("train", "val", "test")]
        return [(row["instruction"], "arditi") for path in parts for row in json.loads(path.read_text("utf-8"))]

    with (folder / "xstest_v2_prompts.csv").open(encoding="utf-8", newline="") as file:
        xstest = [(row["prompt"], "xstest") for row in csv.DictReader(file) if not row["type"].startswith("contrast")]
    with (folder / "or-bench-hard-1k.csv").open(encoding="utf-8", newline="") as file:
        or_bench = [(row["prompt"], "or-bench-hard") for row in csv.DictReader(file)]
    return {
        "harmful": split_files("harmful"),
        "harmless": split_files("harmless"),
        # As many of each, so that neither set decides alone.
        "borderline": [*xstest, *or_bench],
    }


def write_sets(folder: Path, to: Path, sizes: Mapping[Split, int], *, seed: int) -> dict[PromptLabel, Path]:
    """Write one JSON Lines file for each kind, with splits drawn by hash under a seed.

    Args:
        folder: of the published files.
        to: where the files are written; not into a repository.
        sizes: prompts of each split that are wanted of each kind.
        seed: of the split.
    """
    to.mkdir(parents=True, exist_ok=True)
    paths: dict[PromptLabel, Path] = {}
    for label, rows in published(folder).items():
        path = to / f"{label}.jsonl"
        drawn = _drawn(rows, {name: int(_SPARE * size) for name, size in sizes.items()}, seed)
        _write(path, drawn)
        paths[label] = path
    clean = load_prompt_sets(
        **{label: str(path) for label, path in paths.items()}, minimum={}, leakage="drop", repeats="drop"
    )
    for label, path in paths.items():
        _write(path, _cut(clean[label], sizes))
    return paths


def _drawn(rows: Sequence[Row], sizes: Mapping[Split, int], seed: int) -> list[tuple[Row, Split]]:
    """As many of every set as there are, in turn, so that a large set does not crowd out a small one."""
    order: Callable[[Row], str] = lambda row: hashlib.sha256(f"{seed} {row[0]}".encode()).hexdigest()  # noqa: E731
    queues = {name: sorted((row for row in rows if row[1] == name), key=order) for name in {row[1] for row in rows}}
    total, found = sum(sizes.values()), []
    while len(found) < total and any(queues.values()):
        for name in sorted(queues):
            if queues[name]:
                found.append(queues[name].pop())
    cycle = [name for name in SPLITS for _ in range(sizes[name])]
    # Shares of the splits, over the whole length: every split gets its part of every set.
    spread = sorted(range(len(cycle)), key=lambda place: hashlib.sha256(f"{seed} {place}".encode()).hexdigest())
    return [(row, cycle[spread[place]]) for place, row in enumerate(found[:total])]


def _cut(prompts: PromptSet, sizes: Mapping[Split, int]) -> list[tuple[Row, Split]]:
    return [
        ((prompt.text, prompt.category or ""), name)
        for name in SPLITS
        for prompt in sorted(prompts.split(name), key=lambda prompt: prompt.sha256)[: sizes[name]]
    ]


def _write(path: Path, rows: Sequence[tuple[Row, Split]]) -> None:
    lines = [
        json.dumps({"prompt": text, "category": source, "split": split}, ensure_ascii=False)
        for (text, source), split in rows
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
