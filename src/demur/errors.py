"""The exceptions that demur raises on purpose.

Everything below `DemurError` is an expected failure with a message for the person who typed the command: what was
wrong, what was given, what to type instead. Anything else that escapes is a bug in demur.

    DemurError                      exit code 2
    |-- InputError                  a value, an option or a file that cannot be used (also a ValueError)
    |   |-- PromptError             a prompt file, row or set
    |   |-- ModelError              a model folder, its tokenizer, its template, its numbers
    |   |   `-- LayoutError         the writers of the residual stream could not be found or proved
    |   `-- RunFolderError          a run folder that is unreadable, unwritable, or belongs to other inputs
    |-- JudgeError                  a judge's server that cannot be reached or keeps failing
    |-- SelectionError              no candidate survived the filters, or none keeps true refusals
    |-- UnsupportedInterventionError  an edit that cannot be folded or exported for this model
    `-- GateError                   an export was asked for without a passed gate; exit code 100
"""


class DemurError(Exception):
    """Base of every expected failure."""

    exit_code = 2


class InputError(DemurError, ValueError):
    """A value, an option or a file that cannot be used."""


class PromptError(InputError):
    """A prompt file, row or set that cannot be used; the message names the file and the row."""


class ModelError(InputError):
    """A model that cannot be loaded, rendered or measured."""


class LayoutError(ModelError):
    """The writers of the residual stream could not be found, or the numeric probe did not confirm them."""


class RunFolderError(InputError):
    """A run folder that is unreadable, unwritable, incomplete, or belongs to another model or other prompts.

    Args:
        message: what was wrong, what was given, what to type instead.
        taken: whether the folder holds something else, so that another folder would do.
    """

    def __init__(self, message: str, *, taken: bool = False) -> None:
        super().__init__(message)
        self.taken = taken


class JudgeError(DemurError):
    """The server of a judge cannot be reached, keeps failing, or sends what is no reply."""


class SelectionError(DemurError):
    """No candidate survived; the message shows the nearest ones and which filter removed each."""


class UnsupportedInterventionError(DemurError):
    """The intervention cannot be folded into, or exported for, this model."""


class GateError(DemurError):
    """An export was asked for an operating point whose gate did not pass."""

    exit_code = 100
