"""The proof of a layout as a record: what was found, what the numbers say, how exact folded weights are."""

import torch
from torch import Tensor

from demur.interventions._intervention import DirectionalAblation
from demur.models import ChatModel, block_errors
from demur.records import (
    EquivalenceRecord,
    Exactness,
    Inspection,
    PositionRecord,
    ProbeRecord,
    TemplateRecord,
    WriterRecord,
)

_TOKENS = 20
"""Greedy tokens that are compared between hooks and folded weights."""
_ROUNDING = {"float64": 1e-9, "float32": 1e-3}
"""Largest logit difference between hooks and folded weights that rounding explains; half precision gets 0.5."""


def inspect_model(chat: ChatModel, *, seed: int = 0) -> Inspection:
    """List every writer of a loaded model, prove the list, and compare hooks with folded weights.

    The layout itself was proved when the model was loaded: a model that cannot be proved never gets here.
    """
    equivalence = None if chat.layout.packed else measure_equivalence(chat, seed=seed)
    verdict, reason = judge_exactness(chat, equivalence)
    parameters = dict(chat.module.named_parameters(remove_duplicate=False))
    return Inspection(
        model=chat.name,
        architecture=type(chat.model).__name__,
        dtype=chat.identity.dtype,
        verdict=verdict,
        reason=reason,
        blocks=chat.layout.blocks,
        d_model=chat.layout.d_model,
        writers=tuple(
            WriterRecord(
                parameter=writer.parameter,
                kind=writer.kind,
                block=writer.block,
                shape=tuple(parameters[writer.parameter].shape),
                axis=writer.axis,
                norm_after=bool(writer.steps),
            )
            for writer in chat.layout.writers
        ),
        sites=tuple(site.module for site in chat.layout.sites),
        probe=_probe_record(chat),
        equivalence=equivalence,
        template=_template_record(chat),
    )


def measure_equivalence(chat: ChatModel, *, seed: int = 0) -> EquivalenceRecord:
    """Ablate a random direction by hooks and in the weights; compare logits and 20 greedy tokens."""
    generator = torch.Generator().manual_seed(seed)
    ablation = DirectionalAblation(torch.randn(chat.layout.d_model, generator=generator, dtype=torch.float64))
    base = _logits(chat)
    with ablation.applied_to(chat):
        applied, tokens_applied = _logits(chat), _greedy(chat)
    with ablation.folded_into(chat):
        folded, tokens_folded = _logits(chat), _greedy(chat)
    return EquivalenceRecord(
        logit_difference=float((applied - folded).abs().max()),
        logit_change=float((applied - base).abs().max()),
        same_tokens=sum(one == two for one, two in zip(tokens_applied, tokens_folded, strict=False)),
        tokens=len(tokens_applied),
    )


def judge_exactness(chat: ChatModel, equivalence: EquivalenceRecord | None) -> tuple[Exactness, str]:
    """The verdict on editing this model's weights, with a sentence."""
    if equivalence is None:
        return (
            "runtime_only",
            f"its weights are {chat.layout.packed}: interventions work at run time, nothing can be folded or exported; "
            "calibrate the unquantised checkpoint for that",
        )
    limit = _ROUNDING.get(str(chat.layout.dtype).removeprefix("torch."), 0.5)
    if equivalence.logit_difference <= limit:
        if chat.layout.tied_embedding is None:
            return "exact", "folded weights give what hooks give, up to rounding"
        return (
            "exact_after_untying",
            f"folded weights give what hooks give once {chat.layout.tied_embedding} is no longer shared with the "
            "output head",
        )
    why = "a norm after the write changes the rest" if chat.layout.has_norm_after_write else "the two differ"
    return (
        "removed_not_identical",
        f"folded weights remove the direction exactly, but {why}: logits differ by {equivalence.logit_difference:.2g} "
        f"where the ablation itself changes them by {equivalence.logit_change:.2g}",
    )


def _logits(chat: ChatModel) -> Tensor:
    """Logits at every position of the probe prompt, [token, vocabulary], float64."""
    with torch.no_grad():
        logits: Tensor = chat.model(**chat.probe_inputs()).logits[0].to(torch.float64).cpu()
    return logits


def _greedy(chat: ChatModel) -> list[int]:
    """20 greedy tokens, end tokens not heeded, so that every model gives as many."""
    inputs = {name: value for name, value in chat.probe_inputs().items() if name in ("input_ids", "attention_mask")}
    return chat.greedy_tokens(inputs, count=_TOKENS)


def _probe_record(chat: ChatModel) -> ProbeRecord:
    errors = block_errors(chat.module, chat.layout, chat.probe_inputs())
    probe = chat.probe
    return ProbeRecord(
        residual=probe.residual,
        baseline=probe.baseline,
        per_block=probe.per_block,
        silent_difference=probe.silent_difference,
        capture_difference=errors.capture,
        decomposition_error=errors.decomposition,
        tolerance=probe.tolerance,
        stream_dtype=str(chat.layout.dtype).removeprefix("torch."),
    )


def _template_record(chat: ChatModel) -> TemplateRecord:
    template = chat.template
    tokens, texts = template.post_instruction_tokens(), template.post_instruction_texts()
    return TemplateRecord(
        positions=tuple(
            PositionRecord(position=index - len(tokens), id=token, text=text)
            for index, (token, text) in enumerate(zip(tokens, texts, strict=True))
        ),
        bos_tokens=template.bos_tokens(),
        system_role=template.takes_system_role(),
        system=template.system,
        options=dict(template.options),
        opens_thinking=template.opens_thinking(),
        response_prefix=template.response_prefix,
    )
