"""Testing, attacking, watching and gating refusal: targeted suites, audit, drift, release gate.

Everything that removes a refusal direction does so in memory; records hold verdicts, hashes and numbers.
"""

from typing import TYPE_CHECKING

from demur._lazy import lazy_names

if TYPE_CHECKING:
    from demur.assurance._audit import audit
    from demur.assurance._audit_settings import AuditSettings, sections_of
    from demur.assurance._check import Checked, check
    from demur.assurance._check_baseline import make_baseline, read_baseline, write_baseline
    from demur.assurance._check_policy import Policy, PolicyFile, read_policy
    from demur.assurance._directions import Directions, directions_of
    from demur.assurance._drift import DriftSettings, drift
    from demur.assurance._drift_monitor import DriftMonitor, DriftReading
    from demur.assurance._model_pairs import PairSettings, compare_base, transfer
    from demur.assurance._monitor_fit import MonitorSettings, fit_monitor
    from demur.assurance._suffix_analysis import SuffixSettings, analyse_suffixes
    from demur.assurance._suffix_search import SuffixSearchSettings, require_toy, search_suffix
    from demur.assurance._suite import run_suite
    from demur.assurance._suite_cases import SuiteCase
    from demur.assurance._suite_load import Suite, load_suite, select_cases, shipped_suites, suite_prompts
    from demur.assurance._suite_session import SuiteSession

__all__ = [
    "AuditSettings",
    "Checked",
    "Directions",
    "DriftMonitor",
    "DriftReading",
    "DriftSettings",
    "MonitorSettings",
    "PairSettings",
    "Policy",
    "PolicyFile",
    "SuffixSearchSettings",
    "SuffixSettings",
    "Suite",
    "SuiteCase",
    "SuiteSession",
    "analyse_suffixes",
    "audit",
    "check",
    "compare_base",
    "directions_of",
    "drift",
    "fit_monitor",
    "load_suite",
    "make_baseline",
    "read_baseline",
    "read_policy",
    "require_toy",
    "run_suite",
    "search_suffix",
    "sections_of",
    "select_cases",
    "shipped_suites",
    "suite_prompts",
    "transfer",
    "write_baseline",
]
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "PairSettings": "demur.assurance._model_pairs",
        "compare_base": "demur.assurance._model_pairs",
        "transfer": "demur.assurance._model_pairs",
        "AuditSettings": "demur.assurance._audit_settings",
        "audit": "demur.assurance._audit",
        "sections_of": "demur.assurance._audit_settings",
        "SuffixSearchSettings": "demur.assurance._suffix_search",
        "SuffixSettings": "demur.assurance._suffix_analysis",
        "analyse_suffixes": "demur.assurance._suffix_analysis",
        "require_toy": "demur.assurance._suffix_search",
        "search_suffix": "demur.assurance._suffix_search",
        "DriftMonitor": "demur.assurance._drift_monitor",
        "DriftReading": "demur.assurance._drift_monitor",
        "DriftSettings": "demur.assurance._drift",
        "drift": "demur.assurance._drift",
        "MonitorSettings": "demur.assurance._monitor_fit",
        "fit_monitor": "demur.assurance._monitor_fit",
        "Directions": "demur.assurance._directions",
        "directions_of": "demur.assurance._directions",
        "SuiteCase": "demur.assurance._suite_cases",
        "suite_prompts": "demur.assurance._suite_load",
        "Suite": "demur.assurance._suite_load",
        "SuiteSession": "demur.assurance._suite_session",
        "load_suite": "demur.assurance._suite_load",
        "run_suite": "demur.assurance._suite",
        "select_cases": "demur.assurance._suite_load",
        "shipped_suites": "demur.assurance._suite_load",
        "Checked": "demur.assurance._check",
        "check": "demur.assurance._check",
        "make_baseline": "demur.assurance._check_baseline",
        "read_baseline": "demur.assurance._check_baseline",
        "write_baseline": "demur.assurance._check_baseline",
        "Policy": "demur.assurance._check_policy",
        "PolicyFile": "demur.assurance._check_policy",
        "read_policy": "demur.assurance._check_policy",
    },
)
