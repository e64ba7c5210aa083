"""Choosing: the refusal direction, the false-refusal direction, the operating point; the gated export."""

from demur.calibration._calibrate import calibrate
from demur.calibration._evaluate import evaluate
from demur.calibration._export import export
from demur.calibration._selection import (
    ScoreRow,
    ScoreTable,
    Selection,
    read_score_table,
    select_refusal_direction,
)
from demur.calibration._settings import CalibrationSettings

__all__ = [
    "CalibrationSettings",
    "ScoreRow",
    "ScoreTable",
    "Selection",
    "calibrate",
    "evaluate",
    "export",
    "read_score_table",
    "select_refusal_direction",
]
