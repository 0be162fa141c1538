"""Every failure a user can cause or meet, as one clear sentence.

The command line turns a `TosaError` into that sentence and `exit_code`; the Python API raises it as it is.
"""


class TosaError(Exception):
    """The work failed. The message says what was given, what was expected, and what to do next."""

    exit_code = 1


class InputError(TosaError):
    """What the user gave cannot be used."""

    exit_code = 2


class ConfigError(InputError):
    """A setting has a wrong value, or settings contradict each other."""


class SourceError(InputError):
    """The source model cannot be found or read."""


class UnsupportedModelError(InputError):
    """The source model is of a kind that cannot be converted."""


class CheckpointError(InputError):
    """A converted folder or a weights file is broken, foreign, or of a newer format."""


class DataError(InputError):
    """A data folder or an image in it cannot be used."""


class OutputError(InputError):
    """The output cannot be written: it exists, or the place is read-only or full."""


class IdentityError(TosaError):
    """With every token kept, the converted model does not equal its source."""


class TrainingError(TosaError):
    """Training had to stop; the last good checkpoint is kept."""


class DataProcessError(TosaError):
    """A process that loads data was killed."""


class MeasureError(TosaError):
    """What was measured is not a number."""


class ExportError(TosaError):
    """The model could not be exported, or what was exported does not compute what the model does."""


class HubError(TosaError):
    """The Hugging Face Hub refused, or could not be reached."""
