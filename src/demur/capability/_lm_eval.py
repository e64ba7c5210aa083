"""Tasks of lm-evaluation-harness in process, before and after an intervention, compared sample by sample."""

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from demur.capability._cache import ResponseCache
from demur.capability._compare import compare_runs
from demur.capability._harness import harness_model, random_numbers_put_back, without_generation_defaults
from demur.capability._tasks import Tasks, find_tasks, import_lm_eval
from demur.errors import InputError
from demur.interventions import Intervention, in_shipped_form
from demur.models import ChatModel
from demur.records import CapabilityRecord, InterventionForm, Rendering
from demur.types import Progress, SilentProgress


def measure_capability(
    chat: ChatModel,
    tasks: Sequence[str],
    *,
    intervention: Intervention | None = None,
    folded: bool = True,
    limit: int | None = None,
    num_fewshot: int | None = None,
    include_path: Path | str | None = None,
    batch_size: int = 16,
    apply_chat_template: bool = True,
    cache: Path | str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> CapabilityRecord:
    """Run tasks on the model, and with an intervention once more with it active; needs the extra `capability`.

    Args:
        chat: the model.
        tasks: presets (`PRESETS`), names of the harness, or YAML files that define a task.
        intervention: the change, if any.
        folded: False applies it at run time (hooks) instead of in the weights, which an export ships.
        limit: most samples of a task.
        num_fewshot: examples before each question, where the task does not fix their number at 0.
        include_path: a folder with further task files.
        batch_size: requests in one forward pass.
        apply_chat_template: put questions through the chat template; its system prompt and options are used.
        cache: a folder for responses. Its files belong to one model, intervention and rendering each.
        seed: of few-shot examples and bootstrap intervals.
        progress: is told what is being done.

    Raises:
        InputError: the harness is missing, a task is unknown or the numbers make no sense.
        ModelError: log-likelihoods are NaN.
    """
    if batch_size < 1 or (limit is not None and limit < 1):
        raise InputError(f"limit and batch_size are at least 1; got {limit} and {batch_size}.")
    import_lm_eval()
    found = find_tasks(tasks, include_path)
    progress = progress or SilentProgress()
    harness = harness_model(chat, batch_size=batch_size, chat_template=apply_chat_template)
    harness.progress = progress
    version = f"lm_eval {importlib.metadata.version('lm_eval')}"
    form: InterventionForm | None = None
    if intervention is not None:
        form = "folded" if folded and chat.layout.packed is None else "applied"

    def run(state: str) -> dict[str, Any]:
        harness.cache = ResponseCache(cache, _state(chat, state, version, batch_size, apply_chat_template))
        return _evaluate(chat, harness, found, limit, num_fewshot, apply_chat_template, seed)

    before, after = run("base model"), None
    if intervention is not None:
        context = in_shipped_form(chat, intervention) if form == "folded" else intervention.applied_to(chat)
        with context:
            after = run(f"{form}:{intervention.fingerprint}")
    measured, groups = compare_runs(before, after, seed=seed)
    template = chat.template
    return CapabilityRecord(
        model=chat.identity,
        rendering=Rendering(
            system=template.system, options=dict(template.options), response_prefix=template.response_prefix
        ),
        chat_template=apply_chat_template,
        fingerprint=None if intervention is None else intervention.fingerprint,
        form=form,
        harness=version,
        limit=limit,
        batch_size=batch_size,
        seed=seed,
        tasks=measured,
        groups=groups,
    )


def _state(chat: ChatModel, state: str, version: str, batch_size: int, apply_chat_template: bool) -> dict[str, Any]:  # noqa: FBT001
    """What responses depend on besides their requests."""
    return {
        "model": chat.identity.content_hash,
        "dtype": chat.identity.dtype,
        "state": state,
        "chat_template": apply_chat_template,
        "system": chat.template.system,
        "options": dict(chat.template.options),
        "response_prefix": chat.template.response_prefix,
        "earlier": list(chat.template.earlier),
        "harness": version,
        "batch_size": batch_size,
    }


def _evaluate(
    chat: ChatModel,
    harness: Any,
    tasks: Tasks,
    limit: int | None,
    num_fewshot: int | None,
    apply_chat_template: bool,  # noqa: FBT001
    seed: int,
) -> dict[str, Any]:
    lm_eval = import_lm_eval()
    with random_numbers_put_back(chat), without_generation_defaults(chat):
        results: dict[str, Any] = lm_eval.simple_evaluate(
            model=harness,
            tasks=list(tasks.names),
            task_manager=tasks.manager,
            num_fewshot=num_fewshot,
            limit=limit,
            batch_size=harness.batch_size,
            bootstrap_iters=0,  # its bootstrap starts processes; demur's own intervals are paired
            log_samples=True,
            apply_chat_template=apply_chat_template,
            system_instruction=chat.template.system if apply_chat_template else None,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    return results
