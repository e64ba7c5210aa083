"""A causal language model that grades texts: no layout, no interventions, answers of one token or a few lines."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from demur.errors import ModelError
from demur.models._chat_model import content_hash, pad_token_of
from demur.models._generation import generate_answers, last_logits, pad_batch
from demur.models._hooks import model_device
from demur.models._loading import load_parts

_ASKED, _ANSWERED = "zqxjkvbp", "wvkqzjxf"
_MOST_BLANKS = 2
"""Llama Guard 3 writes a blank line before its answer."""


@dataclass
class ClassifierModel:
    """A causal language model with its tokenizer, which may have no chat template.

    Args:
        model: a transformers causal language model; an adapter may be attached.
        tokenizer: its tokenizer.
        name: hub id or path, for messages.
    """

    model: Any
    tokenizer: Any
    name: str = "in-memory"
    _label_tokens: dict[tuple[str, ...], list[list[int]]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.model.eval()
        text = self.model.config.get_text_config()
        if getattr(text, "attention_chunk_size", 0) is None:
            # Llama Guard 4 attends to everything and says so with null, at which transformers fails: one chunk for all.
            text.attention_chunk_size = text.max_position_embeddings

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 of weights, config, vocabulary and chat template."""
        return content_hash(self.model, self.tokenizer)

    @property
    def longest_input(self) -> int | None:
        """Positions that the model was made for, in tokens; None where its config does not say."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def render_exchange(self, prompt: str, completion: str) -> str:
        """A user turn and an assistant turn in the tokenizer's own chat template.

        Raises:
            ModelError: there is no template, or it does not show both turns.
        """
        return self._render(prompt, completion, in_parts=self._in_parts)

    def _render(self, prompt: str, completion: str, *, in_parts: bool) -> str:
        messages = [
            {"role": role, "content": [{"type": "text", "text": text}] if in_parts else text}
            for role, text in (("user", prompt), ("assistant", completion))
        ]
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:
            # Templates raise whatever they like through jinja's raise_exception.
            raise ModelError(f"{self.name}: the chat template does not accept an exchange: {error}") from error
        return str(text)

    @cached_property
    def _in_parts(self) -> bool:
        """Whether the template reads a message as a list of parts only, as that of Llama Guard 4 does."""
        reasons = []
        for in_parts in (False, True):
            try:
                text = self._render(_ASKED, _ANSWERED, in_parts=in_parts)
            except ModelError as error:
                reasons.append(str(error))
                continue
            if 0 <= text.find(_ASKED) < text.find(_ANSWERED):
                return in_parts
            reasons.append(f"{self.name}: the chat template does not show both the prompt and the answer to the model.")
        raise ModelError(reasons[0])

    def encode(self, text: str, *, begin: bool) -> list[int]:
        """Token ids; with `begin`, after one beginning-of-sequence token where the tokenizer has one."""
        ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        first = self.tokenizer.bos_token_id
        return [first, *ids] if begin and first is not None and ids[:1] != [first] else ids

    def cut(self, text: str, count: int, *, keep: Literal["start", "end"]) -> str:
        """The first or last `count` tokens of a text, as text; a text that is no longer is left as it is."""
        ids = self.encode(text, begin=False)
        if len(ids) <= count:
            return text
        kept = ids[:count] if keep == "start" else ids[len(ids) - count :]
        part = str(self.tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        # A character of several tokens may have been cut in two.
        return part.rstrip("\ufffd") if keep == "start" else part.lstrip("\ufffd")

    def label_probabilities(self, sequences: Sequence[Sequence[int]], labels: Sequence[str]) -> Tensor:
        """Probability that the answer begins with each label, [batch, labels], float64 on the CPU.

        A likeliest token that is blank is taken as written, and the one after it is looked at.

        Raises:
            ModelError: two labels begin with the same token, or a logit is NaN.
        """
        tokens = self.label_tokens(tuple(labels))
        rows = [list(sequence) for sequence in sequences]
        found = torch.zeros(len(rows), len(labels), dtype=torch.float64)
        open_rows = list(range(len(rows)))
        for _ in range(_MOST_BLANKS + 1):
            chances = self._next_token([rows[index] for index in open_rows])
            found[open_rows] = torch.stack([chances[:, ids].sum(-1) for ids in tokens], dim=-1)
            likeliest = dict(zip(open_rows, chances.argmax(-1).tolist(), strict=True))
            open_rows = [index for index, token in likeliest.items() if not self.tokenizer.decode([token]).strip()]
            if not open_rows:
                break
            for index in open_rows:
                rows[index].append(likeliest[index])
        return found

    def _next_token(self, rows: Sequence[Sequence[int]]) -> Tensor:
        batch = pad_batch(rows, pad=pad_token_of(self.tokenizer), side="left", device=model_device(self.model))
        logits = last_logits(self.model, batch)
        if torch.isnan(logits).any():
            raise ModelError(f"{self.name}: the judge's logits are NaN. Load it in bfloat16 or float32.")
        return logits.cpu().double().softmax(-1)

    def label_tokens(self, labels: tuple[str, ...]) -> list[list[int]]:
        """For each label its tokens, in any case and with or without a space before; else the first token of several.

        Raises:
            ModelError: two labels begin with the same token.
        """
        if labels not in self._label_tokens:
            self._label_tokens[labels] = self._find_tokens(labels)
        return self._label_tokens[labels]

    def _find_tokens(self, labels: tuple[str, ...]) -> list[list[int]]:
        found: dict[str, list[int]] = {label: [] for label in labels}
        for token, index in self.tokenizer.get_vocab().items():
            word = token.lstrip("\u2581\u0120 ").lower()  # how sentencepiece and byte-level tokenizers write a space
            if word in found:
                found[word].append(index)
        tokens = [sorted(found[label]) or self.encode(label, begin=False)[:1] for label in labels]
        if len({index for ids in tokens for index in ids}) < sum(map(len, tokens)):
            raise ModelError(f"{self.name}: its tokenizer begins {' and '.join(labels)} with the same token.")
        return tokens

    def write(self, sequences: Sequence[Sequence[int]], *, max_new_tokens: int) -> list[str]:
        """Greedy answers to one batch of token sequences, in their order."""
        pad = pad_token_of(self.tokenizer)
        answers = generate_answers(self.model, self.tokenizer, sequences, pad=pad, max_new_tokens=max_new_tokens)
        return [answer.text for answer in answers]


def load_classifier(
    model_id: str, *, revision: str | None = None, dtype: str = "auto", device: str = "auto"
) -> ClassifierModel:
    """Load a model that grades texts; a PEFT adapter is merged into the base model that it names.

    The arguments are those of `load_chat_model`; no layout is looked for, and no chat template is needed.

    Raises:
        ModelError: the model, its weights or its tokenizer cannot be loaded.
    """
    parts = load_parts(
        model_id, revision=revision, dtype=dtype, device=device, trust_remote_code=False, needs_chat_template=False
    )
    return ClassifierModel(parts.model, parts.tokenizer, model_id)
