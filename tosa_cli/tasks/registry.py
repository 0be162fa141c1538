"""All tasks by name. A new one is a file beside this one, and a line here."""

from tosa_cli.tasks.base import Task
from tosa_cli.tasks.classification import Classification
from tosa_cli.tasks.depth import Depth
from tosa_cli.tasks.features import Features
from tosa_cli.tasks.predictor import PredictorTask
from tosa_cli.tasks.segmentation import Segmentation
from tosa_cli.tasks.tokens import TokensTask

TOKENS_TASKS: dict[str, TokensTask] = {task.name: task for task in (Classification(), Features())}
PREDICTOR_TASKS: dict[str, PredictorTask] = {task.name: task for task in (Depth(), Segmentation())}
TASKS: dict[str, Task] = {**TOKENS_TASKS, **PREDICTOR_TASKS}
