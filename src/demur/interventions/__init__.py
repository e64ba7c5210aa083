"""Changing a model inside a context, folding the change into weights, exporting it."""

from demur.interventions._conditional import ConditionalAblation
from demur.interventions._export import write_adapter, write_merged
from demur.interventions._graded import GradedAblation, LayerKernel, WeightAblation, site_components
from demur.interventions._inspect import inspect_model, judge_exactness, measure_equivalence
from demur.interventions._intervention import (
    ActivationAddition,
    Combined,
    DirectionalAblation,
    Intervention,
    ablating_rows,
    ablating_span,
    adding_rows,
    can_fold,
    in_shipped_form,
)
from demur.interventions._rounding import RoundedWeights, round_to_nearest
from demur.interventions._sharded import Edits, edits_of, load_edits, save_edits, write_merged_sharded

__all__ = [
    "ActivationAddition",
    "Combined",
    "ConditionalAblation",
    "DirectionalAblation",
    "Edits",
    "GradedAblation",
    "Intervention",
    "LayerKernel",
    "RoundedWeights",
    "WeightAblation",
    "ablating_rows",
    "ablating_span",
    "adding_rows",
    "can_fold",
    "edits_of",
    "in_shipped_form",
    "inspect_model",
    "judge_exactness",
    "load_edits",
    "measure_equivalence",
    "round_to_nearest",
    "save_edits",
    "site_components",
    "write_adapter",
    "write_merged",
    "write_merged_sharded",
]
