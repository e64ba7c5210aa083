"""A loaded chat model: weights, tokenizer, template and proved layout in one object."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import InitVar, dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from demur.errors import LayoutError, ModelError
from demur.models._chat_template import ChatTemplate
from demur.models._decoding import Continuation
from demur.models._generation import (
    Completion,
    Settled,
    answers_to,
    end_tokens,
    forward_inputs,
    generate_answers,
    last_logits,
    logits_at_end,
    pad_batch,
)
from demur.models._gguf import GgufFile
from demur.models._hooks import model_device
from demur.models._layout import Layout, discover_layout
from demur.models._probe import ProbeResult, check_finite_trace, probe_layout
from demur.models._proof_cache import cache_folder, proof_key, read_proof, write_proof
from demur.records import ModelIdentity
from demur.types import Progress

_PROBE_TEXT = "Write one line."
_NOT_USED = "took no part"
"""How the message of `discover_layout` says that a parameter was not used."""


@dataclass
class ChatModel:
    """A Hugging Face causal language model that answers chat prompts.

    Args:
        model: a transformers causal language model, in evaluation mode.
        tokenizer: its tokenizer, with a chat template.
        name: hub id or path, as recorded.
        revision: hub commit, if any.
        template: how prompts are rendered; by default the tokenizer's template without a system prompt.
        gguf: the file whose dequantised weights these are, if they are from one.
        progress: told how far the proof of the layout is.
        keep_proof: whether a proof of the very same weights may come from the user's cache folder and is kept there.

    Raises:
        LayoutError: the writers of the residual stream cannot be found or proved.
        ModelError: no chat template, or it cannot render a prompt; or an adapter that is not merged.
    """

    model: Any
    tokenizer: Any
    name: str = "in-memory"
    revision: str | None = None
    template: ChatTemplate = field(default=None)  # type: ignore[assignment]
    gguf: GgufFile | None = None
    progress: InitVar[Progress | None] = None
    keep_proof: InitVar[bool] = False
    layout: Layout = field(init=False)
    probe: ProbeResult = field(init=False)
    _hashed: tuple[str, str] | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self, progress: Progress | None, keep_proof: bool) -> None:
        if self.template is None:
            self.template = ChatTemplate(self.tokenizer)
        _refuse_adapters(self.model)
        self.model.eval()
        inputs = self.probe_inputs()
        try:
            self.layout, trace = discover_layout(self.model, inputs)
        except LayoutError as error:
            if _NOT_USED not in str(error):
                raise
            # Experts to which no token of the short prompt was sent: many random tokens reach them.
            inputs = self._long_probe_inputs()
            self.layout, trace = discover_layout(self.model, inputs)
        check_finite_trace(self.model, self.layout, trace)
        del trace  # it holds every tensor of the forward pass
        key = proof_key(self.model, self.layout, self._content_hash()) if keep_proof and cache_folder() else None
        found = None if key is None else read_proof(key, self.layout)
        self.probe = found or probe_layout(self.model, self.layout, inputs, progress=progress)
        if key is not None and found is None:
            write_proof(key, self.probe)

    def _content_hash(self) -> str:
        """`content_hash`, computed once as long as nothing changes: it reads all weights."""
        tensors = self.model.state_dict().values()
        state = [(each.data_ptr(), 0 if each.is_inference() else each._version) for each in tensors]
        settings = (self.model.config.to_dict(), self.tokenizer.chat_template, end_tokens(self.model, self.tokenizer))
        stamp = f"{state} {settings}"
        if self._hashed is None or self._hashed[0] != stamp:
            self._hashed = (stamp, content_hash(self.model, self.tokenizer))
        return self._hashed[1]

    def _long_probe_inputs(self) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        size = self.model.get_input_embeddings().num_embeddings
        rows = torch.randint(size, (4, 64), generator=generator).tolist()
        return forward_inputs(self.model, self.batch(rows), last_logits_only=False)

    def probe_inputs(self, text: str = _PROBE_TEXT) -> dict[str, Tensor]:
        """Forward arguments for one short rendered prompt, with logits at every position."""
        batch = pad_batch([self.template.encode(text)], pad=self.pad_token, side="left", device=self.device)
        return forward_inputs(self.model, batch, last_logits_only=False)

    @property
    def device(self) -> torch.device:
        """The device that takes the input tokens."""
        return model_device(self.model)

    @property
    def module(self) -> nn.Module:
        """The model as a plain module: what hooks and parameter names refer to."""
        module: nn.Module = self.model
        return module

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return len(self.layout.blocks)

    @property
    def pad_token(self) -> int:
        """The padding token; where there is none, the end token stands in (it is masked anyway)."""
        return pad_token_of(self.tokenizer)

    @cached_property
    def identity(self) -> ModelIdentity:
        """What a record says about this model."""
        parameters = list(self.model.parameters())
        return ModelIdentity(
            id=self.name,
            revision=self.revision,
            content_hash=self._content_hash(),
            architecture=type(self.model).__name__,
            dtype=str(parameters[0].dtype).removeprefix("torch."),
            n_parameters=sum(parameter.numel() for parameter in parameters),
            n_layers=self.n_layers,
            d_model=self.layout.d_model,
            chat_template_sha256=hashlib.sha256(str(self.tokenizer.chat_template).encode()).hexdigest(),
            gguf_sha256=None if self.gguf is None else self.gguf.sha256,
        )

    def encode(self, prompts: Iterable[str]) -> list[list[int]]:
        """Rendered and tokenized prompts."""
        return [self.template.encode(prompt) for prompt in prompts]

    def batch(self, sequences: Sequence[Sequence[int]], *, side: str = "left") -> dict[str, Tensor]:
        """A padded batch on the model's device."""
        return pad_batch(sequences, pad=self.pad_token, side=side, device=self.device)

    def run(self, batch: dict[str, Tensor]) -> None:
        """One forward pass for its hooks; logits are computed at the last position only."""
        with torch.no_grad():
            self.model(**forward_inputs(self.model, batch))

    def next_token_logits(self, batch: dict[str, Tensor], *, check: bool = True) -> Tensor:
        """Logits at the last position of a left-padded batch, [batch, vocabulary].

        Raises:
            ModelError: a logit is NaN and `check` is on. (Some models mask tokens with minus infinity on purpose.)
        """
        logits = last_logits(self.model, batch)
        if check:
            self._refuse_nan(torch.isnan(logits))
        return logits

    def _refuse_nan(self, found: Tensor) -> None:
        if found.any():
            raise ModelError(
                f"{self.name}: the model's logits are NaN. Half precision overflows in some models: load it with "
                "--dtype bfloat16 or --dtype float32; if that does not help, the weights are damaged."
            )

    def logits_at_end(self, batch: dict[str, Tensor], *, count: int) -> Tensor:
        """Logits at the last `count` positions of a left-padded batch, [batch, count, vocabulary], in its own dtype.

        Those of padding are without meaning, and NaN in some models.

        Raises:
            ModelError: a logit of a real token is NaN.
        """
        logits = logits_at_end(self.model, batch, count=count)
        self._refuse_nan(torch.isnan(logits).any(-1) & batch["attention_mask"][:, -count:].bool().to(logits.device))
        return logits

    def logits_with_gradient(self, batch: dict[str, Tensor], *, count: int) -> Tensor:
        """What `logits_at_end` gives, with its graph: for derivatives in what hooks put into the stream."""
        inputs = forward_inputs(self.model, batch)
        if "logits_to_keep" in inputs:
            inputs["logits_to_keep"] = count
        with torch.enable_grad():
            logits: Tensor = self.model(**inputs).logits[:, -count:]
        return logits

    def greedy_tokens(self, inputs: dict[str, Tensor], *, count: int) -> list[int]:
        """The next `count` greedy tokens of one prompt, end tokens not heeded, each by a full forward pass.

        For comparing two states of a model: no cache whose handling could differ, every model gives as many.
        """
        ids = inputs["input_ids"]
        for _ in range(count):
            batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            ids = torch.cat([ids, self.next_token_logits(batch).argmax(-1, keepdim=True)], dim=1)
        return [int(token) for token in ids[0, -count:]]

    def generate(self, prompts: Sequence[str], *, max_new_tokens: int) -> list[Completion]:
        """Greedy answers to one batch of prompts, in their order."""
        return self.answers(self.encode(prompts), max_new_tokens=max_new_tokens)

    def answers(
        self, sequences: Sequence[Sequence[int]], *, max_new_tokens: int, seeds: Sequence[int] | None = None
    ) -> list[Completion]:
        """What the model goes on with after each sequence of token ids: greedy, or sampled with one seed for each."""
        return generate_answers(
            self.model, self.tokenizer, sequences, pad=self.pad_token, max_new_tokens=max_new_tokens, seeds=seeds
        )

    def answers_to(
        self,
        sequences: Sequence[Sequence[int]],
        continuations: Sequence[Sequence[Continuation]],
        *,
        max_new_tokens: int,
        settled: Sequence[Sequence[Settled]] | None = None,
    ) -> list[list[Completion]]:
        """Several answers to each sequence of token ids, which is read once where the model's cache allows it.

        Args:
            sequences: token ids of each prompt.
            continuations: the answers wanted of each prompt: an opening, a seed. All of them are computed together, so
                a batch has as many rows.
            max_new_tokens: longest answer, its opening not counted.
            settled: one for each continuation: true of an answer so far if the rest of it is not wanted.

        Returns:
            The answers without their openings, in the order of `continuations`.
        """
        return answers_to(
            self.model,
            self.tokenizer,
            sequences,
            continuations,
            pad=self.pad_token,
            max_new_tokens=max_new_tokens,
            settled=settled,
        )


def content_hash(model: Any, tokenizer: Any) -> str:
    """SHA-256 of all that decides what a model answers: weights, config, vocabulary, chat template."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    digest.update(str(tokenizer.chat_template).encode())
    digest.update(repr(sorted(tokenizer.get_vocab().items())).encode())
    # What the same weights compute depends on the config too: rope, norms, windows, the tokens that end an answer.
    settings = _without_provenance(model.config.to_dict())
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    digest.update(repr(sorted(end_tokens(model, tokenizer))).encode())
    return digest.hexdigest()


def pad_token_of(tokenizer: Any) -> int:
    """The padding token; where there is none, the end token stands in (it is masked anyway)."""
    return next(int(token) for token in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if token is not None)


def _refuse_adapters(model: nn.Module) -> None:
    """Layers of an adapter compute beside the weights: neither the layout nor a fold would be that of the model."""
    if any(type(module).__module__.startswith("peft.") for module in model.modules()):
        raise ModelError(
            "the model holds a PEFT adapter that is not merged: call merge_and_unload() first, and give the model "
            "that it returns."
        )


_PROVENANCE = frozenset({"_name_or_path", "architectures", "dtype", "transformers_version"})
"""Entries of a config that say where and how it was saved, not what the model computes."""


def _without_provenance(config: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_provenance(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in _PROVENANCE
    }


def length_sorted_batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first, so that little is padded and memory peaks at the start."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    for start in range(0, len(order), size):
        yield order[start : start + size]
