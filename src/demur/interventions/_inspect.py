"""The proof of a layout as a record: what was found, what the numbers say, how exact folded weights are."""

import torch
from torch import Tensor

from demur.interventions._intervention import DirectionalAblation
from demur.models import (
    HALF,
    ChatModel,
    Widened,
    block_errors,
    boundary_streams,
    orthogonalized_blockwise,
    widened,
)
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
"""Next tokens that are compared between hooks and folded weights."""
_TEXT = "Write one line about each of these: a river, a bridge, an old clock, a loaf of bread and the sea in winter."
"""Longer than `_TOKENS` tokens for any tokenizer."""
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
    """Ablate a random direction by hooks and in the weights; compare logits and 20 next tokens of one text.

    Half precision is computed in float32, so that what differs is the edit and not its rounding.
    """
    generator = torch.Generator().manual_seed(seed)
    ablation = DirectionalAblation(torch.randn(chat.layout.d_model, generator=generator, dtype=torch.float64))
    wide = Widened(chat.module)
    inputs = chat.probe_inputs(_TEXT)
    with widened(chat.module, wide):
        base = _logits(chat, inputs)
        with ablation.applied_to(chat):
            applied = _logits(chat, inputs)
        # What `folded_into` does, one block at a time, and not rounded to the weights' dtype.
        with orthogonalized_blockwise(chat.module, chat.layout, ablation.basis, wide=wide):
            folded = _logits(chat, inputs)
    one, two = applied[-_TOKENS:].argmax(-1), folded[-_TOKENS:].argmax(-1)
    return EquivalenceRecord(
        logit_difference=_largest(applied - folded),
        logit_change=_largest(applied - base),
        same_tokens=int((one == two).sum()),
        tokens=len(one),
    )


def _largest(difference: Tensor) -> float:
    # Some models mask tokens with minus infinity, and its difference to itself is NaN.
    return float(torch.nan_to_num(difference, nan=0.0, posinf=torch.inf, neginf=-torch.inf).abs().max())


def judge_exactness(chat: ChatModel, equivalence: EquivalenceRecord | None) -> tuple[Exactness, str]:
    """The verdict on editing this model's weights, with a sentence."""
    if equivalence is None:
        return (
            "runtime_only",
            f"its weights are {chat.layout.packed}: interventions work at run time, nothing can be folded or exported; "
            "calibrate the unquantised checkpoint for that",
        )
    limit = _ROUNDING.get(str(chat.probe.dtype).removeprefix("torch."), 0.5)
    if equivalence.logit_difference <= limit:
        if chat.layout.tied_embedding is None:
            return "exact", "folded weights give what hooks give, up to rounding"
        return (
            "exact_after_untying",
            f"folded weights give what hooks give once {chat.layout.tied_embedding} is no longer shared with the "
            "output head",
        )
    return (
        "removed_not_identical",
        f"folded weights remove the direction exactly, but {_cause(chat)}: logits differ by "
        f"{equivalence.logit_difference:.2g} where the ablation itself changes them by {equivalence.logit_change:.2g}",
    )


def _cause(chat: ChatModel) -> str:
    """Why hooks and folded weights differ beyond rounding, although the layout is proved."""
    if chat.layout.has_norm_after_write:
        return "a norm after the write changes the rest"
    if chat.probe.dtype in HALF:
        return (
            f"parts of the model compute in {str(chat.probe.dtype).removeprefix('torch.')} only, whose rounding grows "
            "along the blocks"
        )
    return (
        f"the two first differ after {_first_difference(chat)}, where something reads a write to the stream before it "
        "is added, or small differences are blown up (a router that is undecided)"
    )


def _first_difference(chat: ChatModel, *, seed: int = 0) -> str:
    """The block after which the streams of the two forms differ by more than rounding; the head if none."""
    generator = torch.Generator().manual_seed(seed)
    ablation = DirectionalAblation(torch.randn(chat.layout.d_model, generator=generator, dtype=torch.float64))
    wide = Widened(chat.module)
    inputs = chat.probe_inputs(_TEXT)
    with widened(chat.module, wide):
        with ablation.applied_to(chat):
            applied = boundary_streams(chat.module, chat.layout, inputs)
        with orthogonalized_blockwise(chat.module, chat.layout, ablation.basis, wide=wide):
            folded = boundary_streams(chat.module, chat.layout, inputs)
    for boundary, (one, two) in enumerate(zip(applied, folded, strict=True)):
        if not (one - two).norm() <= chat.probe.tolerance * one.norm():
            return "the embeddings" if boundary == 0 else f"block {boundary - 1} ({chat.layout.blocks[boundary - 1]})"
    return "the last block, in the output head"


def _logits(chat: ChatModel, inputs: dict[str, Tensor]) -> Tensor:
    """Logits at every position of a prompt, [token, vocabulary], float64."""
    with torch.no_grad():
        logits: Tensor = chat.model(**inputs).logits[0].cpu().to(torch.float64)
    return logits


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
        stream_dtype=str(chat.probe.dtype).removeprefix("torch."),
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
