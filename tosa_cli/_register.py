"""Registers `tosa_vit` with timm, without importing timm.

`import tosa_cli; timm.create_model("local-dir:...")` has to find the entry point, yet `tosa --help` must not wait
for torch. So it is registered at once if timm is already there, and else as soon as timm's models are imported.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

_TRIGGER = "timm.models"
_REGISTRY = "tosa_cli.model.registry"


class _RegisterAfterImport(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _TRIGGER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                importlib.import_module(_REGISTRY)

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def register_with_timm() -> None:
    """Register the `tosa_vit` entry point now, or when timm's models are first imported."""
    if _TRIGGER in sys.modules:
        importlib.import_module(_REGISTRY)
    else:
        sys.meta_path.insert(0, _RegisterAfterImport())
