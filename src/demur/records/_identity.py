"""Which model and which prompts were measured."""

from demur.records._base import Record


class ModelIdentity(Record):
    """Which model was measured."""

    id: str
    """Hub id or local path, as given."""
    revision: str | None
    """The hub commit; null for a local folder."""
    content_hash: str
    """sha256 over the weights, the config and the tokenizer as loaded."""
    architecture: str
    dtype: str
    n_parameters: int
    n_layers: int
    d_model: int
    chat_template_sha256: str
    gguf_sha256: str | None = None
    """sha256 of the GGUF file whose dequantised weights were measured; null for other checkpoints."""


class PromptSetIdentity(Record):
    """Which prompts were used."""

    source: str
    n: int
    sha256: str
    """sha256 over the sorted hashes of the prompts and their splits."""
    splits: dict[str, int]
    """Prompts per split: train, validation, test."""
