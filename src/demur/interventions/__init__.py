"""Changing a model inside a context, folding the change into weights, exporting it."""

from demur.interventions._export import write_adapter, write_merged
from demur.interventions._inspect import inspect_model, judge_exactness, measure_equivalence
from demur.interventions._intervention import (
    ActivationAddition,
    Combined,
    DirectionalAblation,
    Intervention,
    ablating_rows,
    adding_rows,
)

__all__ = [
    "ActivationAddition",
    "Combined",
    "DirectionalAblation",
    "Intervention",
    "ablating_rows",
    "adding_rows",
    "inspect_model",
    "judge_exactness",
    "measure_equivalence",
    "write_adapter",
    "write_merged",
]
