"""Choosing the refusal direction from a table of candidate scores (Arditi et al. 2024, section 2.3 and appendix C).

A plain function from numbers to a choice: it knows nothing about models, and how the scores were measured.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demur.errors import InputError, SelectionError
from demur.records import CandidateScores

_NEAREST = 5
"""How many of the rejected candidates an error shows: enough to see what they have in common, short enough to read."""


@dataclass(frozen=True)
class ScoreRow:
    """The scores of one candidate as measured: NaN where a model overflowed, which a record must not hold.

    None where a score was not measured to the end, as a filter had decided or the candidate could no longer win.
    """

    position: int
    """Token position from the end of the prompt, negative."""
    layer: int
    """Block at whose input the candidate was read, from 0."""
    bypass: float | None
    """Mean refusal score (log-odds) on harmful prompts while the candidate is ablated; lower is better."""
    induce: float | None
    """Mean refusal score (log-odds) on harmless prompts while the candidate is added at its layer."""
    kl: float | None
    """Mean KL(base || ablated) of the next token on harmless prompts, nats."""
    rejected_by: tuple[str, ...] = ()
    """Filters that decided before their score was complete."""

    @property
    def is_finite(self) -> bool:
        """Whether all scores that were measured are numbers that can be compared."""
        measured = [score for score in (self.bypass, self.induce, self.kl) if score is not None]
        return "nan" not in self.rejected_by and all(map(math.isfinite, measured))


@dataclass(frozen=True)
class ScoreTable:
    """A table of candidate scores as read from a file."""

    n_layers: int
    rows: tuple[ScoreRow, ...]


@dataclass(frozen=True)
class Selection:
    """What was chosen, and what became of every other candidate."""

    selected: CandidateScores
    survivors: int
    """Candidates that no filter removed, the selected one included."""
    candidates: tuple[CandidateScores, ...]
    """All candidates in scan order, with `rejected_by` and `selected` filled in."""


@dataclass(frozen=True)
class _Filters:
    """The limits, and how far a row is beyond each."""

    first_pruned_layer: int
    n_layers: int
    kl_limit: float
    induce_minimum: float

    def excesses(self, row: ScoreRow) -> dict[str, float]:
        """By filter that removes the row: how far it is beyond, in natural-log units where there is one.

        An induce score is a log-odds, so its distance is one already; that of a KL is the log of its ratio to the
        limit; a layer counts by its share of the depth, which makes it the cheapest miss.
        """
        if not row.is_finite:
            return {"nan": math.inf}
        found = dict.fromkeys(row.rejected_by, math.inf)
        if row.layer >= self.first_pruned_layer:
            found["layer"] = (row.layer - self.first_pruned_layer + 1) / self.n_layers
        if row.kl is not None and row.kl > self.kl_limit:
            found["kl"] = math.log(row.kl / self.kl_limit) if self.kl_limit else math.inf
        if row.induce is not None and row.induce < self.induce_minimum:
            found["induce"] = self.induce_minimum - row.induce
        return found


def select_refusal_direction(
    rows: Sequence[ScoreRow],
    *,
    n_layers: int,
    kl_limit: float = 0.1,
    induce_minimum: float = 0.0,
    layer_fraction: float = 0.8,
) -> Selection:
    """Choose the candidate that lowers refusal most among those that pass the filters.

    As in the published code of Arditi et al.: a candidate is dropped if any score is NaN, if
    `layer >= int(layer_fraction * n_layers)`, if its KL is above the limit (equality is kept), or if its induce score
    is below the minimum (equality is kept). The smallest bypass score wins; of equal ones the first in scan order,
    which is position from the most negative upward, then layer from 0.

    Args:
        rows: The candidates, in any order.
        n_layers: Number of decoder blocks of the model.
        kl_limit: Largest mean KL on harmless prompts, nats.
        induce_minimum: Smallest mean refusal score (log-odds) when the candidate is added.
        layer_fraction: Share of the blocks, from the first, whose candidates are allowed.

    Raises:
        InputError: no candidates, a (position, layer) twice, a layer that the model does not have, or a limit out of
            range.
        SelectionError: no candidate passes the filters; the message shows the nearest and what to change.
    """
    if not 0 < layer_fraction <= 1:
        raise InputError(
            f"layer_fraction is a share of the layers above 0 and up to 1, such as 0.8; got {layer_fraction}."
        )
    if not kl_limit >= 0:
        raise InputError(f"kl_limit is a number of nats from 0 up, such as 0.1; got {kl_limit}.")
    if math.isnan(induce_minimum):
        raise InputError("induce_minimum is a refusal score in log-odds, such as 0; got NaN.")
    _check_rows(rows, n_layers)
    filters = _filters(n_layers, kl_limit, induce_minimum, layer_fraction)
    scan = sorted(rows, key=lambda row: (row.position, row.layer))
    rejected_by = [tuple(filters.excesses(row)) for row in scan]
    survivors = [row for row, reasons in zip(scan, rejected_by, strict=True) if not reasons]
    if not survivors:
        raise SelectionError(_nothing_survived(scan, filters))
    # min keeps the first of equal ones; a bypass score that was not measured to the end could not win.
    best = min(survivors, key=lambda row: math.inf if row.bypass is None else row.bypass)
    candidates = tuple(
        _record(row, reasons, selected=row is best) for row, reasons in zip(scan, rejected_by, strict=True)
    )
    return Selection(
        selected=next(candidate for candidate in candidates if candidate.selected),
        survivors=len(survivors),
        candidates=candidates,
    )


def _filters(n_layers: int, kl_limit: float, induce_minimum: float, layer_fraction: float) -> _Filters:
    return _Filters(
        first_pruned_layer=int(layer_fraction * n_layers),
        n_layers=n_layers,
        kl_limit=kl_limit,
        induce_minimum=induce_minimum,
    )


def nearest_rejected(
    rows: Sequence[ScoreRow],
    *,
    count: int,
    n_layers: int,
    kl_limit: float,
    induce_minimum: float,
    layer_fraction: float,
) -> list[ScoreRow]:
    """Of candidates that the filters remove those that miss them by the least; the limits are those of the selection.

    Only candidates whose scores are numbers, of the allowed layers.
    """
    filters = _filters(n_layers, kl_limit, induce_minimum, layer_fraction)
    usable = [row for row in rows if row.is_finite and row.layer < filters.first_pruned_layer]
    return sorted(usable, key=lambda row: _nearness(row, filters))[:count]


def chosen_despite_filters(
    rows: Sequence[ScoreRow],
    place: tuple[int, int],
    *,
    n_layers: int,
    kl_limit: float,
    induce_minimum: float,
    layer_fraction: float,
) -> Selection:
    """A selection of one place, (position, layer), that the filters remove; its record says which."""
    filters = _filters(n_layers, kl_limit, induce_minimum, layer_fraction)
    scan = sorted(rows, key=lambda row: (row.position, row.layer))
    candidates = tuple(
        _record(row, tuple(filters.excesses(row)), selected=(row.position, row.layer) == place) for row in scan
    )
    return Selection(next(each for each in candidates if each.selected), 0, candidates)


def _nearness(row: ScoreRow, filters: _Filters) -> tuple[int, float]:
    excesses = filters.excesses(row)
    return len(excesses), sum(excesses.values())


def _record(row: ScoreRow, rejected_by: tuple[str, ...], *, selected: bool) -> CandidateScores:
    return CandidateScores(
        position=row.position,
        layer=row.layer,
        bypass_score=_finite(row.bypass),
        induce_score=_finite(row.induce),
        kl_score=_finite(row.kl),
        rejected_by=rejected_by,
        selected=selected,
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _check_rows(rows: Sequence[ScoreRow], n_layers: int) -> None:
    if not rows:
        raise InputError("there is no candidate to select from; the table of scores is empty.")
    for row in rows:
        if not 0 <= row.layer < n_layers:
            raise InputError(
                f"candidate (position {row.position}, layer {row.layer}) is not of this model, which has the layers "
                f"0 to {n_layers - 1}; give the number of layers that the scores belong to."
            )
    (position, layer), count = Counter((row.position, row.layer) for row in rows).most_common(1)[0]
    if count > 1:
        raise InputError(
            f"candidate (position {position}, layer {layer}) is in the table {count} times; keep one row of it."
        )


# When nothing survives ----------------------------------------------------------------------------------------------


def _nothing_survived(scan: Sequence[ScoreRow], filters: _Filters) -> str:
    finite = [row for row in scan if row.is_finite]
    if not finite:
        return (
            f"none of the {len(scan)} candidates has finite scores: the model gave NaN or infinite logits. "
            "Load it in another precision, for example --dtype bfloat16 or --dtype float32."
        )

    nearest = sorted(finite, key=lambda row: _nearness(row, filters))[:_NEAREST]
    counts = Counter(name for row in scan for name in filters.excesses(row))
    removed = ", ".join(f"{name} {counts[name]}" for name in ("nan", "layer", "kl", "induce") if counts[name])
    lines = [
        f"none of the {len(scan)} candidate directions passed the filters (removed by: {removed}; they overlap).",
        f"Allowed are layers below {filters.first_pruned_layer}, a KL up to {filters.kl_limit:g} and an induce "
        f"score from {filters.induce_minimum:g}. The nearest:",
        *(f"  {_describe(row)} -> removed by {', '.join(filters.excesses(row))}" for row in nearest),
        f"{_remedy(nearest[0], filters)}A wide miss means that this model does not "
        "refuse along one direction on these prompts: check that it refuses the harmful ones, or give more prompts.",
    ]
    return "\n".join(lines)


def _describe(row: ScoreRow) -> str:
    scores = (("bypass", row.bypass, 3), ("induce", row.induce, 3), ("KL", row.kl, 4))
    measured = [f"{name} {value:.{digits}f}" for name, value, digits in scores if value is not None]
    return f"position {row.position}, layer {row.layer}: {', '.join(measured) or 'not measured'}"


def _remedy(row: ScoreRow, filters: _Filters) -> str:
    options = []
    for name in filters.excesses(row):
        if name == "layer":
            # Half a layer above the least share that keeps the row, so that rounding cannot cut it off again.
            share = min((row.layer + 1.5) / filters.n_layers, 1.0)
            options.append(f"--layer-fraction {_rounded_up(share, within=1.0)}")
        elif name == "kl" and row.kl is not None:
            options.append(f"--kl-limit {_rounded_up(row.kl)}")
        elif name == "induce" and row.induce is not None:
            options.append(f"--induce-minimum {-float(_rounded_up(-row.induce)):g}")
    return f"With {' '.join(options)} the first of them passes. " if options else ""


def _rounded_up(value: float, *, within: float = math.inf) -> str:
    """`value` with two digits, never below it."""
    if abs(value) < 1e-9:  # below any difference between scores, and too small to divide by
        return "1e-09" if value > 0 else "0"
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - 1)
    steps = math.ceil(value / unit)
    if float(f"{steps * unit:.3g}") < value:  # the division can round a value just above a step down to it
        steps += 1
    return f"{min(steps * unit, within):.3g}"


# Tables on disk -----------------------------------------------------------------------------------------------------

_SCORE_KEYS = {
    "bypass": ("bypass_score", "refusal_score"),
    "induce": ("induce_score", "steering_score"),
    "kl": ("kl_score", "kl_div_score"),
}
"""Our name of each score, then its name in the run files of Arditi et al."""

_LIST_KEYS = ("candidates", "refusal")
"""The list of rows: in a table of scores, and in our own candidates.json."""


def read_score_table(path: Path) -> ScoreTable:
    """Read candidate scores from a JSON file.

    The file is an object with `n_layers` and a list `candidates` (in our own candidates.json: `refusal`) of rows with
    `position`, `layer` and the three scores, under our names (`bypass_score`, `induce_score`, `kl_score`) or those of
    the published run files (`refusal_score`, `steering_score`, `kl_div_score`). NaN and null mean "no number"; but in
    a row with `rejected_by` (our own files) null means "not measured" unless nan is among the reasons, and a table with
    such rows answers for the limits of its own run only. Other keys are ignored.

    Raises:
        InputError: the file cannot be read, is no such table, or holds a candidate twice; the message names the place.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the score table {path}: {error.strerror or error}.") from error
    except ValueError as error:  # also UnicodeDecodeError: a binary file
        raise InputError(f"the score table {path} is no JSON file: {error}.") from error
    if not isinstance(table, dict):
        raise InputError(f'the score table {path} must be an object with "n_layers" and "candidates".')
    n_layers = _whole(table, "n_layers", str(path))
    if n_layers < 1:
        raise InputError(f'{path}: "n_layers" must be at least 1; got {n_layers}.')
    listed = next((table[key] for key in _LIST_KEYS if key in table), None)
    if not isinstance(listed, list) or not listed:
        raise InputError(f'{path}: needs a list "candidates" with a row for every (position, layer).')
    rows = tuple(_read_row(row, f"{path}, candidate {number}") for number, row in enumerate(listed, start=1))
    try:
        _check_rows(rows, n_layers)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return ScoreTable(n_layers=n_layers, rows=rows)


def _read_row(row: object, where: str) -> ScoreRow:
    if not isinstance(row, dict):
        raise InputError(f"{where}: must be an object with position, layer and three scores; got {row!r:.60}.")
    position = _whole(row, "position", where)
    if position >= 0:
        raise InputError(f'{where}: "position" counts from the end of the prompt, so it is negative; got {position}.')
    scores: dict[str, float | None] = {name: _score(row, keys, where) for name, keys in _SCORE_KEYS.items()}
    layer, reasons = _whole(row, "layer", where), row.get("rejected_by")
    if not isinstance(reasons, list) or "nan" in reasons:
        return ScoreRow(position, layer, scores["bypass"], scores["induce"], scores["kl"])
    scores = {name: None if value is None or math.isnan(value) else value for name, value in scores.items()}
    decided = tuple(name for name in ("kl", "induce") if name in reasons and scores[name] is None)
    return ScoreRow(position, layer, scores["bypass"], scores["induce"], scores["kl"], decided)


def _whole(row: Mapping[str, Any], key: str, where: str) -> int:
    if key not in row:
        raise InputError(f'{where}: has no "{key}"; its keys are {", ".join(map(str, row)) or "none"}.')
    value = row[key]
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(f'{where}: "{key}" must be a whole number; got {value!r:.60}.')
    return value


def _score(row: Mapping[str, Any], keys: tuple[str, str], where: str) -> float:
    given = [key for key in keys if key in row]
    if len(given) != 1:
        have = f'has both "{keys[0]}" and "{keys[1]}"' if given else f'has neither "{keys[0]}" nor "{keys[1]}"'
        raise InputError(f"{where}: {have}; give one of them (its keys are {', '.join(map(str, row)) or 'none'}).")
    value = row[given[0]]
    if value is None:
        return math.nan
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise InputError(f'{where}: "{given[0]}" must be a number; got {value!r:.60}.')
    return float(value)
