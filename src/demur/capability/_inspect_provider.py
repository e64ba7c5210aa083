"""A model provider for inspect_ai: its tasks run against a live model with an intervention active.

inspect_ai keys its response cache and names its logs by the model's name, so the name holds a hash of the model, the
intervention and the rendering.
"""

import hashlib
import re
import secrets
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import anyio
from anyio import to_thread
from pydantic import BaseModel, PrivateAttr

from demur.capability._harness import render_messages
from demur.errors import InputError
from demur.evaluation import often
from demur.interventions import Intervention
from demur.models import ChatModel, Completion, load_chat_model
from demur.records import InterventionForm, RunFolder, canonical_json

try:
    from inspect_ai.model import (
        ChatCompletionChoice,
        ChatMessageAssistant,
        GenerateConfig,
        ModelAPI,
        ModelOutput,
        ModelUsage,
        get_model,
    )
    from inspect_ai.model import Model as InspectModel
except ImportError as error:
    raise InputError(f"inspect tasks need inspect_ai ({error}): run pip install 'demur[inspect]'.") from error

_MAX_TOKENS = 512
_SHOWN = 16
"""Hex digits of the state in the model's name: 64 bits."""
_GENERATING = threading.Lock()
"""Two providers may share one model, each with its own change: only one of them generates at a time."""
_UNSUPPORTED = (
    "top_k", "top_p", "frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "num_choices",
    "response_schema",
)  # fmt: skip


def inspect_provider(
    chat: ChatModel, intervention: Intervention | None = None, *, folded: bool = True, batch_size: int = 16
) -> "InspectModel":
    """The model for `inspect_ai.eval(task, model=...)`, with the intervention active whenever it generates.

    The log names it `demur/<name>@<hash>` and holds the intervention's fingerprint in `model_args`.

    Args:
        chat: the model; it is unchanged between generations.
        intervention: the change, if any.
        folded: False applies it at run time (hooks) instead of in the weights, which an export ships.
        batch_size: most prompts generated together.
    """
    return get_model(
        f"demur/{chat.name.strip('/')}",
        chat=_Live.of(chat, f"sha256 {chat.identity.content_hash}"),
        intervention=None if intervention is None else _Live.of(intervention, type(intervention).__name__),
        fingerprint=None if intervention is None else intervention.fingerprint,
        folded=folded,
        batch_size=batch_size,
        memoize=False,
    )


class _Live(BaseModel):
    """Carries an object past inspect_ai, which would write all its fields into the log."""

    what: str
    _value: Any = PrivateAttr()

    @classmethod
    def of(cls, value: Any, what: str) -> "_Live":
        live = cls(what=what)
        live._value = value
        return live

    @property
    def value(self) -> Any:
        return self._value


@dataclass
class _Request:
    """A prompt that waits for its answer."""

    tokens: list[int]
    max_tokens: int
    seed: int | None
    """Of a sample at temperature 1; None is greedy."""
    answer: Completion | None = None
    error: Exception | None = None

    @property
    def done(self) -> bool:
        return self.answer is not None or self.error is not None


class DemurAPI(ModelAPI):  # type: ignore[misc]
    """`demur/<hub id or folder>` with `-M run=RUN`, or a live model through `inspect_provider`.

    Args:
        model_name: hub id or folder, or any name where `chat` or `path` is given.
        base_url: not used.
        api_key: not used.
        config: inspect_ai's generation settings.
        chat: a live model.
        intervention: a change to it.
        path: hub id or folder, if it is not the name.
        run: folder of a calibration whose operating point is applied.
        fingerprint: the intervention that is expected; another one is refused.
        folded: False applies the change at run time (hooks).
        batch_size: most prompts generated together.
        model_args: passed to `load_chat_model`, such as dtype and device.

    Raises:
        InputError: the arguments contradict each other or the fingerprint is another one.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: Any = None,
        *,
        chat: Any = None,
        intervention: Any = None,
        path: str | None = None,
        run: str | None = None,
        fingerprint: str | None = None,
        folded: bool = True,
        batch_size: int = 16,
        **model_args: Any,
    ) -> None:
        name = re.sub(rf"@[0-9a-f]{{{_SHOWN}}}$", "", model_name)  # a retry gives the name that was logged
        self.chat: ChatModel = _model(name, _unwrapped(chat), path, model_args)
        change = _change(self.chat, _unwrapped(intervention), run)
        self.fingerprint = None if change is None else change.fingerprint
        if fingerprint is not None and fingerprint != self.fingerprint:
            raise InputError(f"the intervention's fingerprint is {self.fingerprint}; expected was {fingerprint}.")
        self.form: InterventionForm | None = None
        self._changed: Any = nullcontext
        if change is not None:
            self._changed, self.form = often(self.chat, change, folded=folded)
        self._batch_size = int(batch_size)
        self._waiting: list[_Request] = []
        self._turn = anyio.Lock()
        super().__init__(f"{name}@{self.state[:_SHOWN]}", base_url, api_key, [], config or GenerateConfig())

    @property
    def state(self) -> str:
        """sha256 of everything that an answer depends on besides the messages and the generation settings."""
        template = self.chat.template
        parts = {
            "model": self.chat.identity.content_hash,
            "intervention": [self.form, self.fingerprint],
            "system": template.system,
            "options": dict(template.options),
            "response_prefix": template.response_prefix,
            "earlier": [list(turn) for turn in template.earlier],
        }
        return hashlib.sha256(canonical_json(parts).encode()).hexdigest()

    def max_tokens(self) -> int:
        """Longest answer where the task does not say."""
        return _MAX_TOKENS

    def max_connections(self) -> int:
        """How many prompts inspect_ai sends at a time."""
        return self._batch_size

    def collapse_user_messages(self) -> bool:
        """Chat templates expect turns to alternate."""
        return True

    async def generate(self, input: list[Any], tools: list[Any], tool_choice: Any, config: Any) -> Any:  # noqa: A002, ARG002 (inspect_ai's signature)
        """Answer one conversation; requests that wait meanwhile are answered together, in a thread.

        Raises:
            InputError: tools, or generation settings that would have to be ignored.
        """
        request = self._request(input, tools, config)
        self._waiting.append(request)
        try:
            await anyio.sleep(0)  # lets the other samples of a batch queue up
            async with self._turn:
                if not request.done:
                    await to_thread.run_sync(self._answer, self._batch(request))
        finally:
            self._waiting = [other for other in self._waiting if other is not request]
        if request.error is not None:
            raise request.error
        return self._output(request, config)

    def _request(self, messages: Sequence[Any], tools: Sequence[Any], config: Any) -> _Request:
        if tools:
            raise InputError("the provider demur does not call tools; use a task without them.")
        ignored = [name for name in _UNSUPPORTED if getattr(config, name, None) not in {None, False}]
        if ignored or config.temperature not in {None, 0, 1}:
            given = ", ".join(ignored) or f"temperature {config.temperature}"
            raise InputError(f"the provider demur answers greedily or samples at temperature 1; got {given}.")
        turns = [(message.role, _text(message)) for message in messages]
        if not turns or turns[-1][0] != "user" or any(role == "tool" for role, _ in turns):
            raise InputError("the provider demur answers conversations of text that end with the user's turn.")
        tokens = self.chat.tokenizer(render_messages(self.chat, turns), add_special_tokens=False)["input_ids"]
        return _Request(list(tokens), config.max_tokens or _MAX_TOKENS, _seed(config, turns))

    def _batch(self, first: _Request) -> list[_Request]:
        """The request and others that wait and can be generated with it."""
        same = [
            other
            for other in self._waiting
            if other is not first
            and not other.done
            and other.max_tokens == first.max_tokens
            and (other.seed is None) == (first.seed is None)
        ]
        return [first, *same[: self._batch_size - 1]]

    def _answer(self, requests: Sequence[_Request]) -> None:
        first = requests[0]
        seeds = None if first.seed is None else [request.seed or 0 for request in requests]
        try:
            with _GENERATING, self._changed():
                answers = self.chat.answers(
                    [request.tokens for request in requests], max_new_tokens=first.max_tokens, seeds=seeds
                )
        except Exception as error:  # noqa: BLE001 (raised again in the task of every request)
            for request in requests:
                request.error = error
            return
        for request, answer in zip(requests, answers, strict=True):
            request.answer = answer

    def _output(self, request: _Request, config: Any) -> Any:
        answer = request.answer
        if answer is None:
            raise AssertionError("a request left the queue without an answer")
        text, cut = _until(answer.text, config.stop_seqs or ())
        reason: Literal["stop", "max_tokens"] = "stop" if cut or answer.ended else "max_tokens"
        n_input, n_output = len(request.tokens), len(answer.tokens)
        return ModelOutput(
            model=self.model_name,
            choices=[
                ChatCompletionChoice(
                    message=ChatMessageAssistant(content=text, model=self.model_name, source="generate"),
                    stop_reason=reason,
                )
            ],
            usage=ModelUsage(input_tokens=n_input, output_tokens=n_output, total_tokens=n_input + n_output),
            metadata={"intervention": self.fingerprint, "form": self.form, "state": self.state},
        )


def _unwrapped(value: Any) -> Any:
    return value.value if isinstance(value, _Live) else value


def _model(name: str, chat: ChatModel | None, path: str | None, options: dict[str, Any]) -> ChatModel:
    if chat is None:
        return load_chat_model(path or name, **options)
    if path is not None or options:
        given = ", ".join(["path"] * (path is not None) + list(options))
        raise InputError(f"a live model is given, so nothing is loaded and {given} would be ignored.")
    return chat


def _change(chat: ChatModel, intervention: Intervention | None, run: str | None) -> Intervention | None:
    if run is None:
        return intervention
    if intervention is not None:
        raise InputError("give an intervention or the folder of a run, not both.")
    from demur.calibration import load_operating_point  # noqa: PLC0415 (only where a run is read)

    return load_operating_point(chat, RunFolder(run))[0]


def _text(message: Any) -> str:
    """The text of a message.

    Raises:
        InputError: it holds anything else, such as an image.
    """
    if not isinstance(message.content, str) and any(part.type != "text" for part in message.content):
        raise InputError("the provider demur reads text only; a message holds something else.")
    return str(message.text)


def _seed(config: Any, turns: Sequence[tuple[str, str]]) -> int | None:
    if not config.temperature:
        return None
    if config.seed is None:
        return secrets.randbits(63)
    digest = hashlib.sha256(canonical_json([config.seed, [list(turn) for turn in turns]]).encode()).digest()
    return int.from_bytes(digest[:7])


def _until(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop sequence, and whether there was one."""
    ends = [text.index(stop) for stop in stops if stop and stop in text]
    return (text[: min(ends)], True) if ends else (text, False)
