"""Looking up published sets by name and label."""

import difflib

from demur.errors import PromptError
from demur.prompts._published import PublishedSet, Rows
from demur.prompts._registry import REGISTRY
from demur.types import PromptLabel


def published_sets() -> tuple[PublishedSet, ...]:
    """Every set of the registry: demur's own first, then harmful, mixed and fine ones."""
    return tuple(REGISTRY.values())


def published_set(name: str) -> PublishedSet:
    """A set of the registry.

    Raises:
        PromptError: there is none of this name.
    """
    known = REGISTRY.get(name)
    if known is None:
        close = difflib.get_close_matches(name, REGISTRY, n=1)
        hint = f"Did you mean {REGISTRY[close[0]].source}?" if close else "`demur prompts list` shows the names."
        raise PromptError(f"set:{name}: there is no set of this name. {hint}")
    return known


def rows_with_label(known: PublishedSet, label: PromptLabel) -> Rows:
    """The rows of a set that carry a label.

    Raises:
        PromptError: the set carries no such rows.
    """
    for rows in known.rows:
        if rows.label == label:
            return rows
    others = [one.source for one in REGISTRY.values() if label in one.labels]
    raise PromptError(
        f"{known.source}: its rows are {' and '.join(known.labels)}, not {label}. Give it as "
        f"{' or '.join('--' + one for one in known.labels)}; {label} rows are in {', '.join(others)}."
    )
