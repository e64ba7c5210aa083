"""Named mixes: the splits of the two papers, as far as they can be had again. Tables and the look-up.

Sampling is by hash, so a mix is the same on every machine; the papers sampled partly without a seed, so only their
shipped split files reproduce them prompt by prompt (`mix:arditi-shipped`).
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from demur.errors import PromptError
from demur.types import PromptLabel, Split

Shares = tuple[float, float, float]
TRAIN: Shares = (1, 0, 0)
VALIDATION: Shares = (0, 1, 0)
TEST: Shares = (0, 0, 1)


@dataclass(frozen=True)
class Part:
    """What one set, or one file of prompts that are split already, gives to a mix."""

    name: str
    """Name of a published set; with `shipped`, name of a JSON file in the folder of the mix."""
    shares: Shares
    """Train, validation and test; who goes where depends on the prompt's hash."""
    limit: int | None = None
    """The most rows that are taken, those with the smallest hashes."""
    shipped: bool = False


@dataclass(frozen=True)
class Mix:
    """Prompts of several sets under one name, typed as `mix:NAME`."""

    name: str
    title: str
    parts: Mapping[PromptLabel, tuple[Part, ...]]
    counts: Mapping[PromptLabel, Mapping[Split, int]]
    """The most prompts of a split, those with the smallest hashes; where none is named all are kept."""
    differs: tuple[str, ...]
    """Where it is not what the paper did."""


_HARMFUL_SETS = (
    Part("advbench", TRAIN, limit=128),
    Part("maliciousinstruct", TRAIN),
    Part("tdc2023", TRAIN),
    Part("harmbench-val", VALIDATION),
    Part("jailbreakbench", TEST),
    Part("harmbench-test", TEST),
    Part("strongreject", TEST),
)
_SAMPLING = "Prompts are sampled by their hash; the paper samples harmful prompts without a seed."
_COPIES = (
    "Copies are found without case and punctuation and leave the earlier split, as the paper's do with exact strings; "
    "near copies stay, and are refused or dropped when the sets are loaded."
)

MIXES: dict[str, Mix] = {
    mix.name: mix
    for mix in (
        Mix(
            name="arditi",
            title="Paper 1, Arditi et al. 2024: refusal direction",
            parts={"harmful": _HARMFUL_SETS, "harmless": (Part("alpaca", (0.6, 0.2, 0.2)),)},
            counts={
                "harmful": {"train": 128, "validation": 32},
                "harmless": {"train": 128, "validation": 32, "test": 100},
            },
            differs=(
                _SAMPLING,
                _COPIES,
                "All harmful test sets are kept; the paper's pipeline evaluates on JailbreakBench alone.",
                "Prompts that the model does not refuse, or refuses, are filtered by the calibration, not here.",
                "There are no borderline prompts: add a source of them.",
            ),
        ),
        Mix(
            name="arditi-shipped",
            title="Paper 1, from its own split files: dataset/splits of andyrdt/refusal_direction",
            parts={
                label: (
                    Part(f"{label}_train.json", TRAIN, shipped=True),
                    Part(f"{label}_val.json", VALIDATION, shipped=True),
                    Part(f"{label}_test.json", TEST, shipped=True),
                )
                for label in ("harmful", "harmless")
            },
            counts={
                "harmful": {"train": 128, "validation": 32},
                "harmless": {"train": 128, "validation": 32, "test": 100},
            },
            differs=(
                "The split files are the paper's; the 128 and 32 that it draws from them (seed 42) are drawn by hash.",
                "Repeats inside its test file (10) are dropped, and 1 training prompt that its test file holds too.",
                "There are no borderline prompts: add a source of them.",
            ),
        ),
        Mix(
            name="wang",
            title="Paper 2, Wang et al. 2025: false-refusal direction",
            parts={
                "harmful": _HARMFUL_SETS,
                "harmless": (Part("alpaca", (0.6, 0.2, 0.2)),),
                "borderline": (Part("or-bench-hard", (0.8, 0.1, 0.1)), Part("xstest", TEST), Part("oktest", TEST, 100)),
            },
            counts={
                "harmful": {"train": 128, "validation": 32, "test": 128},
                "harmless": {"train": 128, "validation": 32, "test": 128},
                "borderline": {"train": 128, "validation": 32},
            },
            differs=(
                _SAMPLING,
                _COPIES,
                "OR-Bench-Hard is split 80/10/10 by hash; the paper cuts the file in its order, which is by category, "
                "so its train and test share no category.",
                "Test holds all of OR-Bench-Hard's share (about 132; the paper samples 128), XSTest's 250 safe prompts "
                "and 100 of OKTest, drawn by hash. The paper's 66 prompts of XSTest, a chosen hard part, are left out.",
            ),
        ),
    )
}
"""Every mix, by name."""


def named_mixes() -> tuple[Mix, ...]:
    """Every mix."""
    return tuple(MIXES.values())


def named_mix(name: str) -> Mix:
    """A mix of the table.

    Raises:
        PromptError: there is none of this name.
    """
    if name not in MIXES:
        close = difflib.get_close_matches(name, MIXES, n=1, cutoff=0.4)
        hint = f"Did you mean mix:{close[0]}? " if close else ""
        raise PromptError(f"mix:{name}: there is no mix of this name. {hint}The mixes are {', '.join(MIXES)}.")
    return MIXES[name]


def parts_with_label(mix: Mix, label: PromptLabel) -> tuple[Part, ...]:
    """What a mix holds of a label.

    Raises:
        PromptError: nothing.
    """
    if label not in mix.parts:
        raise PromptError(
            f"mix:{mix.name} has no {label} prompts, only {' and '.join(mix.parts)}. Give another source of them, such "
            f"as {'set:or-bench-hard or ' if label == 'borderline' else ''}demur:{label}."
        )
    return mix.parts[label]
