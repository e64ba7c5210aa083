"""From what the user typed to a checked prompt set."""

from typing import Literal, get_args

from demur.errors import PromptError
from demur.prompts._files import read_file
from demur.prompts._hub import read_hub
from demur.prompts._leakage import check_repeats, drop_repeats
from demur.prompts._mix_rows import load_mix
from demur.prompts._prompts import PromptSet
from demur.prompts._rows import prompts_of
from demur.prompts._set_rows import read_bundled, read_set
from demur.prompts._source import BundledSource, FileSource, HubSource, MixSource, SetSource, Source, parse_source
from demur.prompts._table import Table
from demur.types import PromptLabel

Remedy = Literal["refuse", "drop"]
"""What is done about prompts that should not be there."""


def load_prompts(source: str, *, label: PromptLabel, minimum: int = 1, repeats: Remedy = "refuse") -> PromptSet:
    """Load the prompts of one label.

    A file may be JSONL, JSON, CSV, TSV, Parquet or text (one prompt a line), in UTF-8. The prompts are in the column
    `prompt`, `instruction`, `goal`, `behavior`, `question` or `text`, or in the one that the source names; the columns
    `split`, `category` and `answer` (or `expected`) are read where they exist. Letter case of column names does not
    count.

    Args:
        source: `PATH`, `PATH:COLUMN`, `hf://OWNER/NAME[/CONFIG][?split=..&column=..&revision=..]` (the config of a
            dataset without owner is given as `config=..`), `set:NAME` for a published set of the registry,
            `set:NAME=PATH` for a local copy of its file, `mix:NAME[?dir=FOLDER]` for a mix of them, or
            `demur:harmful|harmless|borderline` for the sets that ship with demur. An existing path wins over a reading
            with a column.
        label: what the set is. Of a published set, the rows of this label are read.
        minimum: how many prompts the set must have at least.
        repeats: refuse a set that holds a prompt twice (letter case, punctuation and whitespace do not count), or drop
            all but the first.

    Returns:
        The prompts in the order of the source, each once, with the splits of the `split` column or none.

    Raises:
        PromptError: the source cannot be found or read, a row cannot be used, the set does not carry the label, a
            prompt comes twice, or there are fewer than `minimum`.
    """
    if label not in get_args(PromptLabel):
        raise PromptError(f"{label!r} is not a label; give one of {', '.join(get_args(PromptLabel))}.")
    check_remedy("repeats", repeats)
    parsed = parse_source(source)
    if isinstance(parsed, MixSource):
        prompts = load_mix(parsed, label)
    else:
        table, place = _table(parsed, label)
        prompts = PromptSet(label, source, prompts_of(table, source=place, label=label))
    if repeats == "drop":
        prompts = drop_repeats(prompts)
    else:
        check_repeats(prompts)
    if len(prompts) < minimum:
        raise PromptError(
            f"{source}: too few {label} prompts: {len(prompts)}, where at least {minimum} are needed. "
            f"Add {minimum - len(prompts)} or more."
        )
    return prompts


def check_remedy(name: str, remedy: str) -> None:
    """Refuse a word that is no remedy.

    Raises:
        PromptError: it is neither refuse nor drop.
    """
    if remedy not in get_args(Remedy):
        raise PromptError(f"{name} is {remedy!r}; give {' or '.join(get_args(Remedy))}.")


def _table(source: Source | SetSource | BundledSource, label: PromptLabel) -> tuple[Table, Source]:
    if isinstance(source, SetSource):
        return read_set(source, label)
    if isinstance(source, BundledSource):
        return read_bundled(source, label)
    if isinstance(source, HubSource):
        return read_hub(source), source
    assert isinstance(source, FileSource)
    return read_file(source), source
