"""All tasks by name. A new one is a file beside this one, and a line here."""

from tosa_cli.tasks.base import Task
from tosa_cli.tasks.classification import Classification
from tosa_cli.tasks.depth import Depth
from tosa_cli.tasks.features import Features
from tosa_cli.tasks.segmentation import Segmentation

TASKS: dict[str, Task] = {task.name: task for task in (Classification(), Features(), Depth(), Segmentation())}
