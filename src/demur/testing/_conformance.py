"""One family of models through all that demur claims about weights: found, proved, folded, exported, reloaded."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from demur.interventions import DirectionalAblation, inspect_model, write_merged
from demur.models import ChatModel
from demur.testing._families import tiny_class, tiny_dtype
from demur.testing._tiny import tiny_chat_model

EXACT = 1e-9
"""Logit differences below this count as none, in float64."""


@dataclass(frozen=True)
class Conformance:
    """What was measured on a tiny random model of one family."""

    family: str
    architecture: str
    dtype: str
    blocks: int
    writers: int
    sites: int
    residual: float
    """Of a random direction, at any block boundary, with every writer orthogonalized to it."""
    capture: float
    decomposition: float
    folded: float
    """Largest logit difference between hooks and folded weights."""
    change: float
    """Largest change of a logit by the ablation itself."""
    same_tokens: int
    tokens: int
    exported: float
    """Largest logit difference between folded weights and the merged checkpoint, reloaded by plain transformers."""
    verdict: str
    stream_dtype: str
    norm_after: bool
    """Whether a norm stands between a weight and the stream."""

    @property
    def exact(self) -> bool:
        """Whether hooks, folded weights and the exported checkpoint are the same model."""
        return max(self.folded, self.exported) < EXACT and self.same_tokens == self.tokens


def check_family(family: str) -> Conformance:
    """Build a tiny random model of a family and measure it.

    Raises:
        LayoutError: the family is not supported; the message says why.
    """
    chat = tiny_chat_model(family, dtype=tiny_dtype(family))
    inspection = inspect_model(chat)
    probe, equivalence = inspection.probe, inspection.equivalence
    if probe is None or equivalence is None:
        raise AssertionError(f"{family}: inspected without numbers")
    return Conformance(
        family=family,
        architecture=inspection.architecture,
        dtype=inspection.dtype,
        blocks=len(inspection.blocks),
        writers=len(inspection.writers),
        sites=len(inspection.sites),
        residual=probe.residual,
        capture=probe.capture_difference,
        decomposition=probe.decomposition_error,
        folded=equivalence.logit_difference,
        change=equivalence.logit_change,
        same_tokens=equivalence.same_tokens,
        tokens=equivalence.tokens,
        exported=_export_difference(chat, family),
        verdict=inspection.verdict,
        stream_dtype=probe.stream_dtype,
        norm_after=any(writer.norm_after for writer in inspection.writers),
    )


def _export_difference(chat: ChatModel, family: str) -> float:
    generator = torch.Generator().manual_seed(0)
    ablation = DirectionalAblation(torch.randn(chat.layout.d_model, generator=generator, dtype=torch.float64))
    inputs = chat.probe_inputs()
    with ablation.folded_into(chat), torch.no_grad():
        folded: Tensor = chat.model(**inputs).logits
    with TemporaryDirectory() as folder:
        write_merged(chat, ablation, Path(folder))
        # The fused kernel for experts has no float64.
        reloaded = tiny_class(family).from_pretrained(
            folder, dtype=tiny_dtype(family), experts_implementation="eager", local_files_only=True
        )
        with torch.no_grad():
            plain: Tensor = reloaded.eval()(**inputs).logits
    return float((folded - plain).abs().max())
