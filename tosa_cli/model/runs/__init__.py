"""Runs of consecutive blocks inside a model that owns the loop over them: found, converted in place, and run."""

from tosa_cli.model.runs.block import TosaBlock
from tosa_cli.model.runs.find import ImageRun, converted_runs, find_runs
from tosa_cli.model.runs.insert import check_keep_all, convert_runs, dense, insert_run
from tosa_cli.model.runs.run import Patches, Run

__all__ = [
    "ImageRun",
    "Patches",
    "Run",
    "TosaBlock",
    "check_keep_all",
    "convert_runs",
    "converted_runs",
    "dense",
    "find_runs",
    "insert_run",
]
