"""From the harness's results of one or two runs to records: paired, sample by sample."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from demur.evaluation import bootstrap_mean, paired_comparison, rate
from demur.records import BeforeAfter, SampleMeans, TaskCapability, TaskMetric, canonical_json

Rows = Sequence[Mapping[str, Any]]
Number = float | tuple[float, float]
"""Of one sample: a number, or (log-likelihood, words or bytes) of which the harness makes perplexity."""


def compare_runs(
    before: Mapping[str, Any], after: Mapping[str, Any] | None, *, seed: int
) -> tuple[tuple[TaskCapability, ...], tuple[TaskCapability, ...]]:
    """Tasks and groups of one run, compared with a second run of the same tasks if there is one.

    Args:
        before: what `lm_eval.simple_evaluate` returned for the base model, with samples.
        after: the same for the changed model.
        seed: of the bootstrap intervals.
    """
    tasks = tuple(_capability(name, [name], before, after, seed) for name in sorted(before["samples"]))
    groups = tuple(
        _capability(name, _leaves(name, before), before, after, seed)
        for name in sorted(before["results"])
        if name not in before["samples"]
    )
    return tasks, groups


def _leaves(name: str, results: Mapping[str, Any]) -> list[str]:
    """The tasks of a group, through groups of groups."""
    if name in results["samples"]:
        return [name]
    found = [leaf for child in results["group_subtasks"].get(name, ()) for leaf in _leaves(child, results)]
    return list(dict.fromkeys(found))


def _capability(
    name: str, tasks: Sequence[str], before: Mapping[str, Any], after: Mapping[str, Any] | None, seed: int
) -> TaskCapability:
    rows = _rows(tasks, before)
    changed = None if after is None else _rows(tasks, after)
    identity = _identity(rows)
    if changed is not None and _identity(changed) != identity:
        raise AssertionError(f"{name}: the two runs were not given the same samples")
    values = before["results"][name]
    metrics = []
    for key in values:
        metric, comma, how = key.partition(",")
        if not comma or metric.endswith("_stderr") or not _is_number(values[key]):
            continue
        metrics.append(
            _metric(
                metric,
                how,
                before["higher_is_better"].get(name, {}).get(metric),
                (float(values[key]), None if after is None else float(after["results"][name][key])),
                (_numbers(rows, metric, how), None if changed is None else _numbers(changed, metric, how)),
                seed,
            )
        )
    config = before["configs"].get(name)
    shots = before["n-shot"].get(name)
    return TaskCapability(
        name=name,
        version=str(before["versions"].get(name, "")),
        n=len({(row["task"], row["doc_id"]) for row in rows}),
        num_fewshot=None if shots is None else int(shots),
        config_sha256=None if config is None else _sha256(canonical_json(_plain(config))),
        samples_sha256=_sha256(canonical_json(identity)),
        metrics=tuple(metrics),
    )


def _rows(tasks: Sequence[str], results: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {**row, "task": task}
        for task in tasks
        for row in sorted(results["samples"][task], key=lambda row: (row["filter"], row["doc_id"]))
    ]


def _identity(rows: Rows) -> list[list[Any]]:
    names = ("task", "filter", "doc_id", "doc_hash", "prompt_hash", "target_hash")
    return [[row[name] for name in names] for row in rows]


def _numbers(rows: Rows, metric: str, how: str) -> list[Number] | None:
    """The metric of each sample; None where a sample has no number."""
    found: list[Number] = []
    for row in rows:
        if row["filter"] != how:
            continue
        value: Any = row.get(metric)
        if _is_number(value):
            found.append(float(value))
        elif isinstance(value, (tuple, list)) and len(value) == 2 and all(map(_is_number, value)) and value[1] > 0:
            found.append((float(value[0]), float(value[1])))
        else:
            return None
    return found or None


def _is_number(value: Any) -> bool:
    """Also for the numbers of numpy. The harness writes "N/A" for what it did not compute."""
    try:
        return not isinstance(value, str) and math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def _metric(
    name: str,
    how: str,
    higher: bool | None,  # noqa: FBT001
    values: tuple[float, float | None],
    numbers: tuple[list[Any] | None, list[Any] | None],
    seed: int,
) -> TaskMetric:
    (one, two), (before, after) = values, numbers
    share = comparison = samples = None
    paired = before is not None and (two is None or after is not None)
    if before is not None and paired:
        if _is_share(before, one) and (after is None or two is None or _is_share(after, two)):
            flags = [value == 1 for value in before], None if after is None else [value == 1 for value in after]
            share = BeforeAfter(before=rate(flags[0]), after=None if flags[1] is None else rate(flags[1]))
            comparison = None if flags[1] is None else paired_comparison(flags[0], flags[1])
        elif len({isinstance(value, tuple) for value in (*before, *(after or ()))}) == 1:
            samples = _sample_means(before, after, seed)
    return TaskMetric(
        name=name,
        filter=how,
        higher_is_better=higher,
        before=one,
        after=two,
        share=share,
        comparison=comparison,
        samples=samples,
    )


def _is_share(numbers: Sequence[Any], reported: float) -> bool:
    """Whether the metric is the share of samples that are 1."""
    return all(value in {0.0, 1.0} for value in numbers) and math.isclose(
        sum(numbers) / len(numbers), reported, abs_tol=1e-9
    )


def _sample_means(before: Sequence[Any], after: Sequence[Any] | None, seed: int) -> SampleMeans:
    pairs = isinstance(before[0], tuple)

    def plain(values: Sequence[Any]) -> list[float]:
        return [-value[0] / value[1] for value in values] if pairs else list(values)

    one, two = plain(before), None if after is None else plain(after)
    change = None if two is None else [b - a for a, b in zip(one, two, strict=True)]
    return SampleMeans(
        unit="nats_per_unit" if pairs else "value",
        before=bootstrap_mean(one, seed=seed),
        after=None if two is None else bootstrap_mean(two, seed=seed),
        difference=None if change is None else bootstrap_mean(change, seed=seed),
    )


def _plain(value: Any) -> Any:
    """A task's configuration as JSON can hold it; functions by their name, without the address."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return getattr(value, "__qualname__", type(value).__qualname__)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
