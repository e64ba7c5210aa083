"""From what the user typed to a checked prompt set."""

from typing import get_args

from demur.errors import PromptError
from demur.prompts._files import read_file
from demur.prompts._hub import read_hub
from demur.prompts._leakage import check_repeats
from demur.prompts._prompts import PromptSet
from demur.prompts._rows import prompts_of
from demur.prompts._source import FileSource, parse_source
from demur.types import PromptLabel


def load_prompts(source: str, *, label: PromptLabel, minimum: int = 1) -> PromptSet:
    """Load the prompts of one label.

    A file may be JSONL, JSON, CSV, TSV, Parquet or text (one prompt a line), in UTF-8. The prompts are in the column
    `prompt`, `instruction`, `goal`, `behavior`, `question` or `text`, or in the one that the source names; the columns
    `split`, `category` and `answer` (or `expected`) are read where they exist. Letter case of column names does not
    count.

    Args:
        source: `PATH`, `PATH:COLUMN`, or `hf://OWNER/NAME[/CONFIG][?split=..&column=..&revision=..]`. The config of a
            dataset without owner is given as `config=..`. An existing path wins over a reading with a column.
        label: what the set is.
        minimum: how many prompts the set must have at least.

    Returns:
        The prompts in the order of the source, each once, with the splits of the `split` column or none.

    Raises:
        PromptError: the source cannot be found or read, a row cannot be used, a prompt comes twice, or there are fewer
            than `minimum`.
    """
    if label not in get_args(PromptLabel):
        raise PromptError(f"{label!r} is not a label; give one of {', '.join(get_args(PromptLabel))}.")
    parsed = parse_source(source)
    table = read_file(parsed) if isinstance(parsed, FileSource) else read_hub(parsed)
    prompts = PromptSet(label, source, prompts_of(table, source=parsed, label=label))
    check_repeats(prompts)
    if len(prompts) < minimum:
        raise PromptError(
            f"{source}: too few {label} prompts: {len(prompts)}, where at least {minimum} are needed. "
            f"Add {minimum - len(prompts)} or more."
        )
    return prompts
