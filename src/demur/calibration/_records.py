"""The parts of a summary that describe where numbers come from."""

import hashlib
import platform
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Literal

import torch

from demur.evaluation import Judge
from demur.interventions import Intervention, can_fold
from demur.models import ChatModel
from demur.prompts import PromptSet
from demur.records import Foldability, JudgeIdentity, LayoutSummary, Provenance, Rendering, RunRecord, canonical_json
from demur.types import PromptLabel


def run_record(
    kind: Literal["calibration", "evaluation", "methods", "audit", "suffixes"],
    chat: ChatModel,
    prompts: Mapping[PromptLabel, PromptSet],
    judge: Judge,
    settings: Mapping[str, Any],
) -> RunRecord:
    """What a run folder belongs to, with its fingerprint."""
    everything = {
        "kind": kind,
        "model_hash": chat.identity.content_hash,
        "prompt_hashes": {label: prompt_set.sha256 for label, prompt_set in prompts.items()},
        "judge": f"{judge.id} {judge.version}",
        "settings": {
            **settings,
            "system": chat.template.system,
            "template_options": dict(chat.template.options),
            "response_prefix": chat.template.response_prefix,
            "dtype": chat.identity.dtype,
        },
    }
    fingerprint = hashlib.sha256(canonical_json(everything).encode()).hexdigest()
    return RunRecord(fingerprint=fingerprint, model_id=chat.name, **everything)


def provenance(chat: ChatModel | None, *, seed: int) -> Provenance:
    """Versions, device, command and time; `chat` is None where no model was loaded."""
    return Provenance(
        demur=version("demur"),
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=version("transformers"),
        platform=platform.platform(),
        device="none" if chat is None else str(chat.device),
        seed=seed,
        command=tuple(sys.argv),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def rendering(chat: ChatModel) -> Rendering:
    """The factors of rendering that a user can set."""
    template = chat.template
    return Rendering(system=template.system, options=dict(template.options), response_prefix=template.response_prefix)


def judge_identity(judge: Judge) -> JudgeIdentity:
    """Id and version of a judge."""
    return JudgeIdentity(id=judge.id, version=judge.version)


def layout_summary(chat: ChatModel, intervention: Intervention | None) -> LayoutSummary:
    """What the probe said, and how far folded weights differ from hooks for this intervention."""
    foldable = chat.layout.packed is None and (intervention is None or can_fold(intervention))
    difference = fold_difference(chat, intervention) if intervention is not None and foldable else 0.0
    if not foldable:
        verdict: Foldability = "runtime_only"
    elif chat.layout.has_norm_after_write:
        verdict = "removed_not_identical"
    else:
        verdict = "exact_after_untying" if chat.layout.tied_embedding else "exact"
    return LayoutSummary(
        verdict=verdict,
        n_writers=len(chat.layout.writers),
        probe_residual=chat.probe.residual,
        fold_difference=difference,
    )


def fold_difference(chat: ChatModel, intervention: Intervention) -> float:
    """Largest difference of next-token logits between hooks and folded weights, on a short prompt."""
    batch = chat.batch(chat.encode(["Write one line."]))
    with intervention.applied_to(chat):
        applied = chat.next_token_logits(batch)
    with intervention.folded_into(chat):
        folded = chat.next_token_logits(batch)
    return float((applied - folded).abs().max())
