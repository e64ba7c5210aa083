"""Choosing: the refusal direction, the false-refusal direction, the operating point; the gated export.

Resolved lazily: the selection rule on a table of scores needs no torch.
"""

from typing import TYPE_CHECKING

from demur._lazy import lazy_names

if TYPE_CHECKING:
    from demur.calibration._calibrate import calibrate
    from demur.calibration._compare_methods import compare_methods, method_names, settings_of
    from demur.calibration._corrected import correct_run
    from demur.calibration._evaluate import evaluate, load_operating_point
    from demur.calibration._export import export
    from demur.calibration._found import FoundDirection, refusal_direction_of
    from demur.calibration._records import judge_identity, provenance, rendering, run_record
    from demur.calibration._selection import (
        ScoreRow,
        ScoreTable,
        Selection,
        read_score_table,
        select_refusal_direction,
    )
    from demur.calibration._settings import CalibrationSettings
    from demur.calibration._stability import false_refusal_stability, refusal_stability

__all__ = [
    "CalibrationSettings",
    "FoundDirection",
    "ScoreRow",
    "ScoreTable",
    "Selection",
    "calibrate",
    "compare_methods",
    "correct_run",
    "evaluate",
    "export",
    "false_refusal_stability",
    "judge_identity",
    "load_operating_point",
    "method_names",
    "provenance",
    "read_score_table",
    "refusal_direction_of",
    "refusal_stability",
    "rendering",
    "run_record",
    "select_refusal_direction",
    "settings_of",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "false_refusal_stability": "demur.calibration._stability",
        "refusal_stability": "demur.calibration._stability",
        "CalibrationSettings": "demur.calibration._settings",
        "ScoreRow": "demur.calibration._selection",
        "ScoreTable": "demur.calibration._selection",
        "Selection": "demur.calibration._selection",
        "calibrate": "demur.calibration._calibrate",
        "compare_methods": "demur.calibration._compare_methods",
        "correct_run": "demur.calibration._corrected",
        "evaluate": "demur.calibration._evaluate",
        "export": "demur.calibration._export",
        "FoundDirection": "demur.calibration._found",
        "refusal_direction_of": "demur.calibration._found",
        "load_operating_point": "demur.calibration._evaluate",
        "judge_identity": "demur.calibration._records",
        "method_names": "demur.calibration._compare_methods",
        "provenance": "demur.calibration._records",
        "rendering": "demur.calibration._records",
        "run_record": "demur.calibration._records",
        "read_score_table": "demur.calibration._selection",
        "select_refusal_direction": "demur.calibration._selection",
        "settings_of": "demur.calibration._compare_methods",
    },
)
