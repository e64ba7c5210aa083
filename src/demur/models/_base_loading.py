"""Loading a base model beside its chat model: it has no chat template of its own, so it reads the chat model's."""

from typing import Any

from demur.errors import ModelError
from demur.models._chat_model import ChatModel
from demur.models._loading import load_parts


def load_base_model(
    model_id: str,
    chat: ChatModel,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
) -> ChatModel:
    """Load the base model of a chat model; both then read the same tokens.

    Args:
        model_id: local folder, GGUF file or hub id of the base model.
        chat: its chat model, whose tokenizer and template are used.
        revision: hub branch, tag or commit.
        dtype: as in `load_chat_model`.
        device: the same.
        trust_remote_code: the same.

    Raises:
        ModelError: it cannot be loaded, or its tokenizer gives words other ids than the chat model's.
        LayoutError: its writers cannot be found or proved.
    """
    parts = load_parts(
        model_id,
        revision=revision,
        dtype=dtype,
        device=device,
        trust_remote_code=trust_remote_code,
        needs_chat_template=False,
    )
    _require_same_words(model_id, parts.model, parts.tokenizer, chat)
    return ChatModel(parts.model, chat.tokenizer, parts.name, parts.commit, chat.template, parts.gguf)


def _require_same_words(model_id: str, model: Any, tokenizer: Any, chat: ChatModel) -> None:
    theirs, ours = tokenizer.get_vocab(), chat.tokenizer.get_vocab()
    # Chat models often give unused entries a meaning of their own, so only words that both have can differ.
    other = next((word for word, number in theirs.items() if ours.get(word, number) != number), None)
    rows = model.get_input_embeddings().weight.shape[0]
    if other is not None or rows <= max(max(tokens) for tokens in chat.encode(["Hello."])):
        told = f"the token {other!r} has another number" if other is not None else f"it has {rows} embeddings only"
        raise ModelError(
            f"{model_id} does not read the tokens of {chat.name}: {told}. Give the base model that the chat model was "
            "made from."
        )
