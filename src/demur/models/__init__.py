"""The only code that knows transformers: loading, rendering, the layout of blocks and writers, hooks, generation."""

from typing import TYPE_CHECKING

from demur._lazy import lazy_names
from demur.models._attribution import Attribution, Part, attribute
from demur.models._base_loading import load_base_model
from demur.models._chat_model import ChatModel, length_sorted_batches
from demur.models._chat_template import ChatTemplate
from demur.models._checkpoint import checkpoint_folder
from demur.models._classifier import ClassifierModel, load_classifier
from demur.models._contrastive import contrasted_logits, contrastive_answers, contrastive_next_token_logits
from demur.models._decoding import Continuation
from demur.models._fine_tuning import FineTuning, fine_tuned
from demur.models._generation import Completion, Settled, end_tokens
from demur.models._gradients import writes_with_gradients
from demur.models._hooks import hook_count, hooked, reading_inputs, swapped_parameters
from demur.models._layout import Layout, Writer, WriteSite, discover_layout
from demur.models._loading import load_chat_model
from demur.models._memory import FittingBatches, is_out_of_memory
from demur.models._partial_forward import Beginning, BlockInputs, PartialForward
from demur.models._probe import (
    BlockErrors,
    ProbeResult,
    block_errors,
    boundary_streams,
    last_stream,
    orthogonalized_blockwise,
    probe_layout,
)
from demur.models._processes import (
    World,
    in_order,
    join_processes,
    leave_processes,
    process_folder,
    tensors_in_order,
    world,
)
from demur.models._reading import eager_attention
from demur.models._reload_check import ExportFormat, ReloadAnswers, reload_answers
from demur.models._widened import HALF, Widened, widened

if TYPE_CHECKING:
    from demur.models._trainer_callback import DriftWarning, Measured, MeasuringCallback, TimeShare

__all__ = [
    "HALF",
    "Attribution",
    "Beginning",
    "BlockErrors",
    "BlockInputs",
    "ChatModel",
    "ChatTemplate",
    "ClassifierModel",
    "Completion",
    "Continuation",
    "DriftWarning",
    "ExportFormat",
    "FineTuning",
    "FittingBatches",
    "Layout",
    "Measured",
    "MeasuringCallback",
    "Part",
    "PartialForward",
    "ProbeResult",
    "ReloadAnswers",
    "Settled",
    "TimeShare",
    "Widened",
    "World",
    "WriteSite",
    "Writer",
    "attribute",
    "block_errors",
    "boundary_streams",
    "checkpoint_folder",
    "contrasted_logits",
    "contrastive_answers",
    "contrastive_next_token_logits",
    "discover_layout",
    "eager_attention",
    "end_tokens",
    "fine_tuned",
    "hook_count",
    "hooked",
    "in_order",
    "is_out_of_memory",
    "join_processes",
    "last_stream",
    "leave_processes",
    "length_sorted_batches",
    "load_base_model",
    "load_chat_model",
    "load_classifier",
    "orthogonalized_blockwise",
    "probe_layout",
    "process_folder",
    "reading_inputs",
    "reload_answers",
    "swapped_parameters",
    "tensors_in_order",
    "widened",
    "world",
    "writes_with_gradients",
]

# transformers' Trainer takes seconds to import.
__getattr__, _ = lazy_names(
    __name__,
    dict.fromkeys(("DriftWarning", "Measured", "MeasuringCallback", "TimeShare"), "demur.models._trainer_callback"),
)
