"""Registers converted models with timm and transformers, without importing either.

`import tosa_cli; timm.create_model("local-dir:...")` has to find the entry point, and `from_pretrained` of transformers
to find the ToSA layers, yet `tosa --help` must not wait for torch. So each is done at once if the library is already
there, and else as soon as it is imported.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

_REGISTRIES = {
    "timm.models": "tosa_cli.model.registry",
    "transformers.modeling_utils": "tosa_cli.hub.transformers_loading",
}
"""What registers, by the module of a library after which it is imported."""


class _RegisterAfterImport(importlib.abc.MetaPathFinder):
    def __init__(self, trigger: str) -> None:
        self.trigger = trigger

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self.trigger:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                importlib.import_module(_REGISTRIES[name])

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def register() -> None:
    """Register now, or when the library is first imported."""
    for trigger, registry in _REGISTRIES.items():
        if trigger in sys.modules:
            importlib.import_module(registry)
        else:
            sys.meta_path.insert(0, _RegisterAfterImport(trigger))
