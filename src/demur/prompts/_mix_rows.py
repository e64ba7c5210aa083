"""A named mix into one prompt set with its splits."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from demur.errors import PromptError
from demur.prompts._files import read_file
from demur.prompts._known_sets import published_set
from demur.prompts._mixes import Mix, Part, named_mix, parts_with_label
from demur.prompts._prompts import SPLITS, Prompt, PromptSet
from demur.prompts._rows import prompts_of
from demur.prompts._set_rows import local_copy, read_set
from demur.prompts._source import FORMATS, FileSource, MixSource, SetSource
from demur.prompts._splits import assign_splits
from demur.types import PromptLabel

_FIRST_KEPT = tuple(reversed(SPLITS))
"""Of copies the one in the latest split stays, as in paper 1: benchmarks are tested on whole."""


def load_mix(source: MixSource, label: PromptLabel) -> PromptSet:
    """Load the prompts of one label of a mix, each once, with their splits.

    A prompt's category is the name of its set, and the category within it where there is one.

    Raises:
        PromptError: no such mix or label, a set that has to be a local copy is not in the folder, or what the readers
            refuse.
    """
    mix = named_mix(source.mix)
    parts = parts_with_label(mix, label)
    files = _local_files(source, mix, parts)
    prompts = [prompt for part in parts for prompt in _part(part, files.get(part.name), source, label)]
    kept = _without_copies(prompts)
    return assign_splits(PromptSet(label, source.given, kept), counts=mix.counts.get(label, {}), minimum={})


def _local_files(source: MixSource, mix: Mix, parts: Iterable[Part]) -> dict[str, Path]:
    """Local copies by the name of the part; every one that is missing is named at once."""
    found: dict[str, Path] = {}
    missing = []
    for part in parts:
        path = _local_file(source.folder, part)
        if path is not None:
            found[part.name] = path
        elif part.shipped:
            missing.append(f"{part.name}, from dataset/splits of github.com/andyrdt/refusal_direction")
        elif published_set(part.name).hub is None:
            missing.append(f"{part.name} ({local_copy(published_set(part.name)).rstrip('.')})")
    if missing:
        folder = "" if source.folder is None else f" {source.folder} lacks them."
        raise PromptError(
            f"{source.given}: these are read from local copies only: {'; '.join(missing)}.{folder} Put them into one "
            f"folder, named by the set (such as oktest.csv), and give mix:{mix.name}?dir=FOLDER."
        )
    return found


def _local_file(folder: Path | None, part: Part) -> Path | None:
    if folder is None:
        return None
    names = [part.name] if part.shipped else [f"{part.name}{ending}" for ending in FORMATS]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _part(part: Part, path: Path | None, source: MixSource, label: PromptLabel) -> tuple[Prompt, ...]:
    if part.shipped and path is not None:
        file = FileSource(source.given, path, column="instruction")
        prompts = prompts_of(read_file(file), source=file, label=label)
    else:
        table, place = read_set(SetSource(f"set:{part.name}", part.name, path), label)
        prompts = prompts_of(table, source=place, label=label)
    name = part.name.removesuffix(".json")
    if part.limit is not None:
        kept = {prompt.sha256 for prompt in sorted(prompts, key=lambda prompt: prompt.sha256)[: part.limit]}
        prompts = tuple(prompt for prompt in prompts if prompt.sha256 in kept)
    split = assign_splits(PromptSet(label, part.name, prompts), fractions=part.shares, minimum={})
    return tuple(
        replace(
            prompt,
            category=f"{name}: {prompt.category}" if prompt.category else name,
            where=f"{name} {prompt.where}",
        )
        for prompt in split.prompts
    )


def _without_copies(prompts: list[Prompt]) -> tuple[Prompt, ...]:
    kept: dict[str, Prompt] = {}
    for prompt in sorted(prompts, key=lambda prompt: _FIRST_KEPT.index(prompt.split or "train")):
        kept.setdefault(prompt.comparison_text, prompt)
    return tuple(prompt for prompt in prompts if kept[prompt.comparison_text] is prompt)
