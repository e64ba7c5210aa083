"""Calibrate how a chat model says no.

Find the direction that mediates refusal and the one that mediates false refusal, remove the second without weakening
the first, prove both with statistics, export the result behind a gate. Importing this package loads nothing heavy.
"""

from typing import TYPE_CHECKING

from demur._lazy import lazy_names

if TYPE_CHECKING:
    from demur.assurance import (
        AuditSettings,
        DriftMonitor,
        analyse_suffixes,
        audit,
        check,
        drift,
        fit_monitor,
        run_suite,
    )
    from demur.calibration import (
        CalibrationSettings,
        calibrate,
        compare_methods,
        evaluate,
        export,
        read_score_table,
        select_refusal_direction,
    )
    from demur.directions import Direction, load_directions
    from demur.errors import DemurError
    from demur.evaluation import PhraseJudge
    from demur.interventions import ActivationAddition, Combined, DirectionalAblation
    from demur.models import ChatModel, load_chat_model
    from demur.monitoring import RefusalMonitor
    from demur.prompts import Prompt, PromptSet, load_prompt_sets, load_prompts
    from demur.records import RunFolder, Summary
    from demur.reports import write_reports

__all__ = [
    "ActivationAddition",
    "AuditSettings",
    "CalibrationSettings",
    "ChatModel",
    "Combined",
    "DemurError",
    "Direction",
    "DirectionalAblation",
    "DriftMonitor",
    "PhraseJudge",
    "Prompt",
    "PromptSet",
    "RefusalMonitor",
    "RunFolder",
    "Summary",
    "analyse_suffixes",
    "audit",
    "calibrate",
    "check",
    "compare_methods",
    "drift",
    "evaluate",
    "export",
    "fit_monitor",
    "load_chat_model",
    "load_directions",
    "load_prompt_sets",
    "load_prompts",
    "read_score_table",
    "run_suite",
    "select_refusal_direction",
    "write_reports",
]

_DOORS = {
    "assurance": (
        "AuditSettings",
        "DriftMonitor",
        "analyse_suffixes",
        "audit",
        "check",
        "drift",
        "fit_monitor",
        "run_suite",
    ),
    "calibration": (
        "CalibrationSettings",
        "calibrate",
        "compare_methods",
        "evaluate",
        "export",
        "read_score_table",
        "select_refusal_direction",
    ),
    "directions": ("Direction", "load_directions"),
    "errors": ("DemurError",),
    "evaluation": ("PhraseJudge",),
    "interventions": ("ActivationAddition", "Combined", "DirectionalAblation"),
    "models": ("ChatModel", "load_chat_model"),
    "monitoring": ("RefusalMonitor",),
    "prompts": ("Prompt", "PromptSet", "load_prompt_sets", "load_prompts"),
    "records": ("RunFolder", "Summary"),
    "reports": ("write_reports",),
}
__getattr__, __dir__ = lazy_names(__name__, {name: f"demur.{door}" for door, names in _DOORS.items() for name in names})
