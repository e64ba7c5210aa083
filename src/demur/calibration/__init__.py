"""Choosing: the refusal direction, the false-refusal direction, the operating point; the gated export.

Resolved lazily: the selection rule on a table of scores needs no torch.
"""

from typing import TYPE_CHECKING

from demur._lazy import lazy_names

if TYPE_CHECKING:
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

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "CalibrationSettings": "demur.calibration._settings",
        "ScoreRow": "demur.calibration._selection",
        "ScoreTable": "demur.calibration._selection",
        "Selection": "demur.calibration._selection",
        "calibrate": "demur.calibration._calibrate",
        "evaluate": "demur.calibration._evaluate",
        "export": "demur.calibration._export",
        "read_score_table": "demur.calibration._selection",
        "select_refusal_direction": "demur.calibration._selection",
    },
)
