"""Directional ablation with a strength for each writer: W - s u u^T W, s by component and layer.

The components are told apart by where they write: the first write site of a block in the order of execution is its
sequence mixer (attention), every later one an MLP, and what enters the first block is the embeddings.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from demur.errors import InputError, UnsupportedInterventionError
from demur.interventions._intervention import DirectionalAblation, _digest, remove_components, require_foldable
from demur.models import ChatModel, Writer, hooked, swapped_parameters

Component = Literal["attention", "mlp"]
MapTensors = dict[str, "partial[Tensor]"]
"""Submodule path -> change of its stream."""


@dataclass(frozen=True)
class LayerKernel:
    """A strength that falls off linearly with the distance from one layer: a tent on a floor."""

    peak: float
    """Strength at the centre."""
    centre: float
    """In layers, from 0; between two of them too."""
    width: float
    """Distance from the centre at which the edge is reached, in layers, above 0."""
    edge: float
    """Strength at that distance and beyond; with the peak's value every layer has the same."""

    def at(self, layer: int) -> float:
        """The strength at one layer."""
        near = max(0.0, 1 - abs(layer - self.centre) / self.width)
        return self.edge + (self.peak - self.edge) * near

    def over(self, n_layers: int) -> tuple[float, ...]:
        """The strengths at all layers."""
        return tuple(self.at(layer) for layer in range(n_layers))


@dataclass(frozen=True)
class GradedAblation:
    """Remove a share of the span of directions from each write: 0 leaves a write as it is, 1 removes the span.

    With all strengths at 1 this is `DirectionalAblation`. The hooks change what each write adds to the stream; folding
    changes the writers themselves, and the two are equal where no norm stands between a weight and the stream.

    Raises:
        InputError: a strength is negative or not finite, or the tables are of different lengths.
    """

    directions: Tensor
    """[k, d_model] or [d_model]; normalized and made orthogonal among themselves."""
    attention: tuple[float, ...]
    """By block: the strength at its first write site."""
    mlp: tuple[float, ...]
    """By block: the strength at its later write sites."""
    embeddings: float

    def __post_init__(self) -> None:
        everything = (*self.attention, *self.mlp, self.embeddings)
        if len(self.attention) != len(self.mlp) or not all(math.isfinite(each) and each >= 0 for each in everything):
            raise InputError(
                "strengths of an ablation are finite numbers from 0 up, one per layer for attention and for mlp alike; "
                f"got attention {self.attention}, mlp {self.mlp}, embeddings {self.embeddings}."
            )

    @property
    def basis(self) -> Tensor:
        """[k, d_model], orthonormal, float64."""
        return DirectionalAblation(self.directions).basis

    @property
    def fingerprint(self) -> str:
        """sha256 of the basis and the strengths."""
        return _digest("graded_ablation", self.basis, self.attention, self.mlp, self.embeddings)

    @contextmanager
    def applied_to(self, chat: ChatModel) -> Iterator[None]:
        """Ablate at run time, by hooks."""
        inputs, outputs = site_changes(chat, self)
        with hooked(chat.module, inputs=inputs, outputs=outputs):
            yield

    def folded_parameters(self, chat: ChatModel) -> dict[str, Tensor]:
        """Every edited parameter by name; the model itself is not touched.

        Raises:
            UnsupportedInterventionError: the weights are packed (quantised), or blocks share a weight that each of
                them would need with another strength.
        """
        require_foldable(chat)
        parameters = dict(chat.module.named_parameters(remove_duplicate=False))
        strengths = writer_strengths(chat, self)
        edited: dict[str, Tensor] = {}
        for writer in chat.layout.writers:
            strength = strengths[writer.parameter]
            if strength:
                source = edited.get(writer.parameter, parameters[writer.parameter])
                edited[writer.parameter] = writer.without(source, self.basis, strength=strength)
        return edited

    def folded_into(self, chat: ChatModel) -> AbstractContextManager[None]:
        """The edit of every writer, biases included; tied embeddings leave the output head alone."""
        return swapped_parameters(chat.module, self.folded_parameters(chat))


WeightAblation = DirectionalAblation | GradedAblation
"""Ablations that plain weights can hold."""


def site_components(chat: ChatModel) -> dict[str, Component]:
    """Write site -> what stands there."""
    found: dict[str, Component] = {}
    blocks: set[int] = set()
    for site in chat.layout.sites:
        found[site.module] = "mlp" if site.block in blocks else "attention"
        blocks.add(site.block)
    return found


def site_changes(chat: ChatModel, ablation: WeightAblation) -> tuple[MapTensors, MapTensors]:
    """What the hooks of an ablation do: changes of block inputs and of module outputs, by path."""
    attention, mlp, embeddings = _strengths(chat, ablation)
    basis = ablation.basis
    components = site_components(chat)
    outputs: MapTensors = {}
    for site in chat.layout.sites:
        strength = (attention if components[site.module] == "attention" else mlp)[site.block]
        if strength:
            outputs[site.module] = partial(_weaken, basis=math.sqrt(strength) * basis)
    if not embeddings:
        return {}, outputs
    change = partial(_weaken, basis=math.sqrt(embeddings) * basis)
    # A share must be taken once: at the embeddings themselves where they are known, else where the blocks begin.
    if chat.layout.entry_sites:
        return {}, {**dict.fromkeys(chat.layout.entry_sites, change), **outputs}
    return {chat.layout.blocks[0]: change}, outputs


def _weaken(stream: Tensor, *, basis: Tensor) -> Tensor:
    """X - s U^T U x, with the root of s in the rows of `basis`."""
    return remove_components(stream, basis)


def _strengths(chat: ChatModel, ablation: WeightAblation) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    if isinstance(ablation, DirectionalAblation):
        ones = (1.0,) * chat.n_layers
        return ones, ones, 1.0
    if len(ablation.attention) != chat.n_layers:
        raise InputError(
            f"{chat.name} has {chat.n_layers} layers; the ablation has strengths for {len(ablation.attention)}. Give "
            "one per layer."
        )
    return ablation.attention, ablation.mlp, ablation.embeddings


def writer_strengths(chat: ChatModel, ablation: WeightAblation) -> Mapping[str, float]:
    """Writer's parameter -> the strength at the site through which it writes.

    Raises:
        UnsupportedInterventionError: blocks share a weight that each of them would need with another strength.
    """
    attention, mlp, embeddings = _strengths(chat, ablation)
    if len({*attention, *mlp, embeddings}) == 1:
        return dict.fromkeys((writer.parameter for writer in chat.layout.writers), embeddings)
    components = site_components(chat)
    shared = _shared_parameters(chat)
    found: dict[str, float] = {}
    for writer in chat.layout.writers:
        if writer.block is None:
            found[writer.parameter] = embeddings
            continue
        if writer.parameter in shared:
            raise UnsupportedInterventionError(
                f"{chat.name}: several blocks share {writer.parameter}, so it cannot have one strength per layer. Use "
                "the ablation at run time (applied_to), or the same strength everywhere."
            )
        component = components[_site_of(chat, writer)]
        found[writer.parameter] = (attention if component == "attention" else mlp)[writer.block]
    return found


def _shared_parameters(chat: ChatModel) -> set[str]:
    names: dict[int, list[str]] = {}
    for name, parameter in chat.module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name for group in names.values() if len(group) > 1 for name in group}


def _site_of(chat: ChatModel, writer: Writer) -> str:
    """The site through which a writer writes: the one that holds it, or else the first of its block that it moves."""
    sites = [site.module for site in chat.layout.sites if site.block == writer.block]
    holding = [site for site in sites if writer.parameter.startswith(f"{site}.")]
    if len(holding) == 1:
        return holding[0]
    # A norm or a dropout after the write returns what is added (Gemma 2): names do not tell, so it is tried out.
    before = _outputs(chat, sites)
    parameter = dict(chat.module.named_parameters(remove_duplicate=False))[writer.parameter].detach()
    noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)).to(parameter)
    with swapped_parameters(chat.module, {writer.parameter: parameter + noise}):
        after = _outputs(chat, sites)
    moved = [site for site in sites if not torch.equal(before[site], after[site])]
    if not moved:
        raise UnsupportedInterventionError(
            f"{chat.name}: through which site {writer.parameter} writes to the stream was not found, so it cannot have "
            "a strength of its own. Use the same strength everywhere."
        )
    return moved[0]


def _outputs(chat: ChatModel, sites: list[str]) -> dict[str, Tensor]:
    kept: dict[str, Tensor] = {}

    def keep(stream: Tensor, *, site: str) -> Tensor:
        kept[site] = stream.detach().clone()
        return stream

    with hooked(chat.module, outputs={site: partial(keep, site=site) for site in sites}), torch.no_grad():
        chat.module(**chat.probe_inputs())
    return kept
