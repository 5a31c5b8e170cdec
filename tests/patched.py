"""Functions of other modules, replaced for one module only."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import pytest


def patch_within(
    patch: pytest.MonkeyPatch, module: ModuleType, imported: ModuleType, **functions: Callable[..., object]
) -> None:
    """Replaces functions of a module that `module` imports, such as `time`, as `module` alone sees them.

    All other modules keep theirs: their threads, such as Ray's, would otherwise call the replacements too.
    """
    patch.setattr(module, imported.__name__, SimpleNamespace(**{**vars(imported), **functions}))
