"""The only code that knows transformers: loading, rendering, the layout of blocks and writers, hooks, generation."""

from demur.models._chat_model import ChatModel, length_sorted_batches
from demur.models._chat_template import ChatTemplate
from demur.models._checkpoint import checkpoint_folder
from demur.models._classifier import ClassifierModel, load_classifier
from demur.models._contrastive import contrasted_logits, contrastive_answers, contrastive_next_token_logits
from demur.models._generation import Completion
from demur.models._hooks import hook_count, hooked, reading_inputs, swapped_parameters
from demur.models._layout import Layout, Writer, WriteSite, discover_layout
from demur.models._loading import load_chat_model
from demur.models._probe import BlockErrors, ProbeResult, block_errors, last_stream, probe_layout
from demur.models._reload_check import ExportFormat, ReloadAnswers, reload_answers

__all__ = [
    "BlockErrors",
    "ChatModel",
    "ChatTemplate",
    "ClassifierModel",
    "Completion",
    "ExportFormat",
    "Layout",
    "ProbeResult",
    "ReloadAnswers",
    "WriteSite",
    "Writer",
    "block_errors",
    "checkpoint_folder",
    "contrasted_logits",
    "contrastive_answers",
    "contrastive_next_token_logits",
    "discover_layout",
    "hook_count",
    "hooked",
    "last_stream",
    "length_sorted_batches",
    "load_chat_model",
    "load_classifier",
    "probe_layout",
    "reading_inputs",
    "reload_answers",
    "swapped_parameters",
]
