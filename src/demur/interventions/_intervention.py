"""Interventions on a live model: frozen values that are applied in a context (hooks) or folded into the weights.

`applied_to` and `folded_into` change nothing for good: hooks are removed and the very same parameters are put back when
the context ends, also after an error.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from demur.errors import UnsupportedInterventionError
from demur.models import ChatModel, hooked, swapped_parameters

_REPEATED = 1e-10
"""Singular values below this share of the largest are rounding of float64, not a dimension of the span."""


class Intervention(Protocol):
    """A change to the residual stream."""

    @property
    def fingerprint(self) -> str:
        """sha256 of the kind and all its numbers: part of every cache key."""

    def applied_to(self, chat: ChatModel) -> AbstractContextManager[None]:
        """A context in which hooks make the change at run time, for prompts and generated tokens alike."""

    def folded_into(self, chat: ChatModel) -> AbstractContextManager[None]:
        """A context in which the weights themselves make the change, with no hooks."""


def _digest(kind: str, *parts: object) -> str:
    digest = hashlib.sha256(kind.encode())
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(str(tuple(part.shape)).encode())
            digest.update(part.detach().to(torch.float64).cpu().contiguous().numpy().tobytes())
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()


def remove_components(stream: Tensor, basis: Tensor) -> Tensor:
    """Return x - B^T B x for an orthonormal basis: directional ablation (Arditi et al. equation 4).

    Args:
        stream: [batch, token, d_model], or [batch * token, d_model].
        basis: [k, d_model], or [batch, 1, d_model] for one direction per row.
    """
    # Half precision would renormalize the direction by up to 1e-3; the two products are small against the block.
    exact = stream if stream.dtype in (torch.float32, torch.float64) else stream.float()
    basis = basis.to(device=exact.device, dtype=exact.dtype)
    # Fused, so that the stream is read twice and written once: beside a block that is all that this costs.
    if basis.dim() == 3:
        rows = exact.reshape(len(basis), -1, exact.shape[-1])  # some modules return all rows' tokens in one dimension
        removed = torch.baddbmm(rows, torch.bmm(rows, basis.mT), basis, alpha=-1)
    else:
        rows = exact.reshape(-1, exact.shape[-1])
        removed = torch.addmm(rows, rows @ basis.T, basis, alpha=-1)
    return removed.view(exact.shape).to(stream.dtype)


@contextmanager
def _ablating(chat: ChatModel, basis: Tensor) -> Iterator[None]:
    layout = chat.layout
    # The embeddings too: some families read them a second time, beside the stream (Zamba, Gemma 4).
    written = (*layout.entry_sites, *(site.module for site in layout.sites))
    with hooked(
        chat.module,
        inputs={layout.blocks[0]: lambda stream: remove_components(stream, basis)},
        outputs=dict.fromkeys(written, lambda output: remove_components(output, basis)),
    ):
        yield


@dataclass(frozen=True)
class DirectionalAblation:
    """Remove the span of one or more directions from every write to the residual stream, at every position.

    The stream then never has a component in that span, so this equals removing it at every block input, attention
    output and MLP output (Arditi et al. section 2.4). Folded, it is weight orthogonalization (section 4.1).
    """

    directions: Tensor
    """[k, d_model] or [d_model]; normalized and made orthogonal among themselves."""

    @property
    def basis(self) -> Tensor:
        """[k, d_model], orthonormal, float64."""
        rows = self.directions.to(torch.float64).reshape(-1, self.directions.shape[-1])
        norms = rows.norm(dim=-1)
        if not torch.isfinite(norms).all() or (norms == 0).any():
            raise UnsupportedInterventionError(
                "a direction to ablate is zero or not finite; it would change nothing or destroy the model."
            )
        if len(rows) == 1:
            return torch.div(rows, norms[:, None])
        # The right singular vectors with a weight: a direction that repeats another one adds no dimension.
        _, weights, vectors = torch.linalg.svd(rows / norms[:, None], full_matrices=False)
        basis: Tensor = vectors[weights > _REPEATED * weights[0]]
        return basis.contiguous()

    @property
    def fingerprint(self) -> str:
        """sha256 of the basis."""
        return _digest("directional_ablation", self.basis)

    def applied_to(self, chat: ChatModel) -> AbstractContextManager[None]:
        """Ablate at run time, by hooks."""
        return _ablating(chat, self.basis)

    def folded_parameters(self, chat: ChatModel) -> dict[str, Tensor]:
        """Every edited parameter by name; the model itself is not touched.

        Raises:
            UnsupportedInterventionError: the model's weights are packed (quantised).
        """
        require_foldable(chat)
        parameters = dict(chat.module.named_parameters(remove_duplicate=False))
        edited: dict[str, Tensor] = {}
        for writer in chat.layout.writers:
            source = edited.get(writer.parameter, parameters[writer.parameter])
            edited[writer.parameter] = writer.without(source, self.basis)
        return edited

    def folded_into(self, chat: ChatModel) -> AbstractContextManager[None]:
        """Weight orthogonalization of every writer, biases included; tied embeddings leave the output head alone."""
        return swapped_parameters(chat.module, self.folded_parameters(chat))


@dataclass(frozen=True)
class ActivationAddition:
    """Add a vector to the input of one block, at every position (Arditi et al. equation 3)."""

    vector: Tensor
    """[d_model]; the coefficient is already in it."""
    layer: int
    foldable: ClassVar[bool] = False

    @property
    def fingerprint(self) -> str:
        """sha256 of the vector and the layer."""
        return _digest("activation_addition", self.vector, self.layer)

    @contextmanager
    def applied_to(self, chat: ChatModel) -> Iterator[None]:
        """Add at run time, by a hook."""

        def add(stream: Tensor) -> Tensor:
            return stream + self.vector.to(stream)

        with hooked(chat.module, inputs={chat.layout.blocks[self.layer]: add}):
            yield

    def folded_into(self, chat: ChatModel) -> AbstractContextManager[None]:
        """Not possible in general.

        Raises:
            UnsupportedInterventionError: always.
        """
        raise UnsupportedInterventionError(
            f"{chat.name}: adding a vector is a bias, for which most checkpoints have no place; use applied_to."
        )


@dataclass(frozen=True)
class Combined:
    """Several interventions at once, applied in order."""

    parts: Sequence[Intervention]

    @property
    def fingerprint(self) -> str:
        """sha256 of the parts' fingerprints."""
        return _digest("combined", *(part.fingerprint for part in self.parts))

    @contextmanager
    def applied_to(self, chat: ChatModel) -> Iterator[None]:
        """Apply all parts at run time."""
        with ExitStack() as stack:
            for part in self.parts:
                stack.enter_context(part.applied_to(chat))
            yield

    @contextmanager
    def folded_into(self, chat: ChatModel) -> Iterator[None]:
        """Fold all parts, one after the other."""
        with ExitStack() as stack:
            for part in self.parts:
                stack.enter_context(part.folded_into(chat))
            yield


def require_foldable(chat: ChatModel) -> None:
    """Refuse to edit packed weights.

    Raises:
        UnsupportedInterventionError: the model's weights are quantised.
    """
    if chat.layout.packed is not None:
        raise UnsupportedInterventionError(
            f"{chat.name}: its weights are {chat.layout.packed}, and an edit cannot be folded into packed weights. "
            "Use the intervention at run time (applied_to), or calibrate and export the unquantised checkpoint and "
            "quantise the result."
        )


def can_fold(intervention: Intervention) -> bool:
    """Whether plain weights can hold an intervention; those that cannot say so in a class attribute `foldable`."""
    if isinstance(intervention, Combined):
        return all(can_fold(part) for part in intervention.parts)
    return bool(getattr(intervention, "foldable", True))


def in_shipped_form(chat: ChatModel, intervention: Intervention) -> AbstractContextManager[None]:
    """The form that is measured: folded weights, as an export ships them; hooks where there is no such form."""
    foldable = chat.layout.packed is None and can_fold(intervention)
    return intervention.folded_into(chat) if foldable else intervention.applied_to(chat)


def ablating_span(chat: ChatModel, basis: Tensor) -> AbstractContextManager[None]:
    """Ablate the span of the orthonormal rows of `basis`, [k, d_model], at run time; gradients flow into the basis."""
    return _ablating(chat, basis)


def ablating_rows(chat: ChatModel, directions: Tensor) -> AbstractContextManager[None]:
    """Ablate another direction in every row of the batch: `directions` is [batch, d_model], unit vectors."""
    return _ablating(chat, directions[:, None])


@contextmanager
def adding_rows(chat: ChatModel, vectors: Tensor, *, layer: int) -> Iterator[None]:
    """Add another vector in every row of the batch at the input of one block: `vectors` is [batch, d_model]."""

    def add(stream: Tensor) -> Tensor:
        return stream + vectors[:, None].to(stream)

    with hooked(chat.module, inputs={chat.layout.blocks[layer]: add}):
        yield
