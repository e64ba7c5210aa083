"""The only code that knows transformers: loading, rendering, the layout of blocks and writers, hooks, generation."""

from demur.models._chat_model import ChatModel, length_sorted_batches
from demur.models._chat_template import ChatTemplate
from demur.models._checkpoint import checkpoint_folder
from demur.models._classifier import ClassifierModel, load_classifier
from demur.models._contrastive import contrasted_logits, contrastive_answers, contrastive_next_token_logits
from demur.models._decoding import Continuation
from demur.models._generation import Completion, Settled
from demur.models._hooks import hook_count, hooked, reading_inputs, swapped_parameters
from demur.models._layout import Layout, Writer, WriteSite, discover_layout
from demur.models._loading import load_chat_model
from demur.models._memory import FittingBatches, is_out_of_memory
from demur.models._partial_forward import Beginnings, BlockInputs, PartialForward
from demur.models._probe import BlockErrors, ProbeResult, block_errors, last_stream, probe_layout
from demur.models._processes import (
    World,
    in_order,
    join_processes,
    leave_processes,
    process_folder,
    tensors_in_order,
    world,
)
from demur.models._reload_check import ExportFormat, ReloadAnswers, reload_answers

__all__ = [
    "Beginnings",
    "BlockErrors",
    "BlockInputs",
    "ChatModel",
    "ChatTemplate",
    "ClassifierModel",
    "Completion",
    "Continuation",
    "ExportFormat",
    "FittingBatches",
    "Layout",
    "PartialForward",
    "ProbeResult",
    "ReloadAnswers",
    "Settled",
    "World",
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
    "in_order",
    "is_out_of_memory",
    "join_processes",
    "last_stream",
    "leave_processes",
    "length_sorted_batches",
    "load_chat_model",
    "load_classifier",
    "probe_layout",
    "process_folder",
    "reading_inputs",
    "reload_answers",
    "swapped_parameters",
    "tensors_in_order",
    "world",
]
