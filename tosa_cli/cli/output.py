"""Where the commands may write."""

from pathlib import Path

from tosa_cli.errors import OutputError
from tosa_cli.hub.checkpoint import is_model_folder
from tosa_cli.hub.folder import check_output


def check_model_output(folder: Path, overwrite: bool) -> None:
    """Check before any work is done that a model can be written, and that nothing but a converted model is replaced.

    Raises:
        OutputError: If the folder exists and may not be replaced, or cannot be written.
    """
    check_output(folder, overwrite)
    if folder.exists() and any(folder.iterdir()) and not is_model_folder(folder):
        raise OutputError(
            f"{folder} is not a converted model and will not be overwritten: choose another name with -o."
        )
