"""From measured checkpoints to the rows of `drift.json`. Loads no model."""

from collections.abc import Sequence

from demur.assurance._drift_statistics import auroc, d_prime, drift_tests, gap, probed
from demur.evaluation import bootstrap_mean, paired_comparison, rate
from demur.records import (
    DriftBehaviour,
    DriftCheckpoint,
    DriftRecord,
    DriftReference,
    DriftRow,
    DriftRule,
    DriftTest,
    Provenance,
)
from demur.types import Decision, PromptLabel


def drift_record(
    reference: DriftReference,
    checkpoints: Sequence[DriftCheckpoint],
    rule: DriftRule,
    provenance: Provenance,
) -> DriftRecord:
    """Every checkpoint beside the first one, with alarms.

    Args:
        reference: what they were measured with.
        checkpoints: in the order in which they were trained; the first one is what all are compared with.
        rule: when an alarm is raised.
        provenance: of this call.
    """
    rows = drift_rows(checkpoints, rule, reference.threshold)
    alarmed = [row for row in rows if row.alarms]
    decision: Decision = "fail" if alarmed else "pass" if any(row.tests for row in rows) else "inconclusive"
    return DriftRecord(
        reference=reference,
        rule=rule,
        judge=next((each.judge for each in checkpoints if each.judge is not None), None),
        rows=rows,
        decision=decision,
        first_alarm=alarmed[0].name if alarmed else None,
        provenance=provenance,
    )


def drift_rows(checkpoints: Sequence[DriftCheckpoint], rule: DriftRule, threshold: float = 0.0) -> tuple[DriftRow, ...]:
    """The rows; the m-th checkpoint that can be tested spends the m-th part of the false-alarm rate."""
    rows: list[DriftRow] = []
    first = checkpoints[0]
    number = 0
    for checkpoint in checkpoints:
        testable = checkpoint is not first and bool(first.projections) and bool(checkpoint.projections)
        number += testable
        rows.append(_row(first, checkpoint, rule, number if testable else None, threshold))
    return tuple(rows)


def _row(
    first: DriftCheckpoint, now: DriftCheckpoint, rule: DriftRule, number: int | None, threshold: float
) -> DriftRow:
    values = probed(now.projections, now.scores) if now.projections else None
    tests: tuple[DriftTest, ...] = ()
    if values is not None and number is not None:
        before = probed(first.projections, first.scores)
        tests = drift_tests(before, values, rule, number=number, threshold=threshold)
    return DriftRow(
        name=now.name,
        step=now.step,
        source=now.source,
        model_hash=now.model_hash,
        cosine=now.cosine,
        norm=now.norm,
        false_refusal_cosine=now.false_refusal_cosine,
        selected=now.selected,
        selection_failed=now.selection_failed,
        gap=None if values is None else gap(values),
        gap_kept=next((test.estimate for test in tests if test.statistic == "gap"), None),
        d_prime=None if values is None else d_prime(values),
        auroc=None if values is None else auroc(values),
        scores={label: bootstrap_mean(each, seed=0) for label, each in now.scores.items()},
        behaviour={label: _behaviour(first, now, label) for label in now.verdicts},
        tests=tests,
        alarms=tuple(test.statistic for test in tests if test.alarm),
    )


def _behaviour(first: DriftCheckpoint, now: DriftCheckpoint, label: PromptLabel) -> DriftBehaviour:
    """Rate of one checkpoint, and its difference from the first one on the prompts that both were asked."""
    before, after = first.verdicts.get(label, {}), now.verdicts[label]
    shared = sorted(before.keys() & after.keys())
    comparison = None
    if now is not first and shared and first.judge == now.judge:
        pairs = paired_comparison([before[each] for each in shared], [after[each] for each in shared])
        comparison = pairs.model_copy(update={"judge": now.judge})
    measured = rate([after[each] for each in sorted(after)])
    return DriftBehaviour(rate=measured.model_copy(update={"judge": now.judge}), comparison=comparison)
