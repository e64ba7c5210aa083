"""A live chat model as a model of lm-evaluation-harness: its own renderer, a cache per state, no global changes."""

import copy
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from demur.capability._cache import Response, ResponseCache
from demur.models import ChatModel
from demur.types import Progress


def harness_model(chat: ChatModel, *, batch_size: int, chat_template: bool) -> Any:
    """The model as an `lm_eval` LM. Build it before any weights are exchanged: building ties them again.

    Its `cache` and `progress` are set by the caller before each run.
    """
    from lm_eval.api.model import hash_args  # noqa: PLC0415 (an extra)
    from lm_eval.models.huggingface import HFLM  # noqa: PLC0415

    class ChatHarness(HFLM):  # type: ignore[misc]
        """`HFLM` on a live model."""

        cache: ResponseCache
        progress: Progress

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:  # noqa: FBT001, FBT002 (the harness's signature)
            """As in all other measurements; an answer that the task begins goes on as the harness does it."""
            if not add_generation_prompt or chat_history[-1]["role"] != "user":
                return str(super().apply_chat_template(chat_history, add_generation_prompt))
            return render_messages(chat, [(turn["role"], turn["content"]) for turn in chat_history])

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[Any]:  # noqa: FBT001, FBT002
            """(log-likelihood, whether greedy) of each continuation."""
            return self._known_or(super().loglikelihood, requests, disable_tqdm)

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[Any]:  # noqa: FBT001, FBT002
            """Log-likelihood of each document."""
            return self._known_or(super().loglikelihood_rolling, requests, disable_tqdm)

        def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[Any]:  # noqa: FBT001, FBT002
            """An answer to each prompt."""
            return self._known_or(super().generate_until, requests, disable_tqdm)

        def _known_or(self, compute: Any, requests: Sequence[Any], disable_tqdm: bool) -> list[Any]:  # noqa: FBT001
            kind = compute.__name__
            keys = [None if _samples(request) else hash_args(kind, request.args) for request in requests]
            found: list[Response | None] = [None if key is None else self.cache.get(key) for key in keys]
            missing = [index for index, response in enumerate(found) if response is None]
            self.progress.start(f"{kind.replace('_', ' ')} requests", len(requests))
            self.progress.advance(len(requests) - len(missing))
            if missing:
                self.set_cache_hook(_Hook(self.cache, self.progress, hash_args))
                answers = compute([requests[index] for index in missing], disable_tqdm=disable_tqdm)
                for index, answer in zip(missing, answers, strict=True):
                    found[index], key = answer, keys[index]
                    if key is not None:
                        self.cache.put(key, answer)
                self.cache.flush()
            return found

    return ChatHarness(
        pretrained=chat.model,
        tokenizer=copy.deepcopy(chat.tokenizer),  # the harness sets its padding token
        batch_size=batch_size,
        # The chat template alone decides about special tokens; without it the tokenizer does.
        add_bos_token=False if chat_template else None,
    )


class _Hook:
    """Takes each response as it comes, so that a killed run has what it computed."""

    def __init__(self, cache: ResponseCache, progress: Progress, hash_args: Any) -> None:
        self._cache, self._progress, self._hash_args = cache, progress, hash_args

    def add_partial(self, kind: str, arguments: Any, response: Response) -> None:
        """Called by the harness."""
        self._progress.advance()
        if kind != "generate_until" or not arguments[1].get("do_sample", False):
            self._cache.put(self._hash_args(kind, arguments), response)


def _samples(request: Any) -> bool:
    """Whether the request asks for a random answer, which no cache may repeat."""
    return len(request.args) > 1 and isinstance(request.args[1], dict) and bool(request.args[1].get("do_sample"))


def render_messages(chat: ChatModel, messages: Sequence[tuple[str, str]]) -> str:
    """A conversation that ends with the user's turn, as the model reads it.

    Args:
        chat: the model; its own system prompt stands where the conversation has none.
        messages: (role, text), the last one of the user.
    """
    *before, (_, prompt) = messages
    system = chat.template.system
    if before and before[0][0] == "system":
        system = before.pop(0)[1]
    return replace(chat.template, system=system, earlier=(*chat.template.earlier, *before)).render(prompt)


@contextmanager
def without_generation_defaults(chat: ChatModel) -> Iterator[None]:
    """Hide the checkpoint's generation config but for its end tokens.

    Its length limit would overrule that of a task, and its penalties would be part of what is measured.
    """
    defaults = chat.model.generation_config
    ends = defaults.eos_token_id
    chat.model.generation_config = type(defaults)(
        eos_token_id=chat.tokenizer.eos_token_id if ends is None else ends, pad_token_id=chat.pad_token
    )
    try:
        yield
    finally:
        chat.model.generation_config = defaults


@contextmanager
def random_numbers_put_back(chat: ChatModel) -> Iterator[None]:
    """The harness seeds every generator of the process; give the caller's back."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [chat.device] if chat.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
