"""Finds operations for which a host would have to wait for its GPU, on a machine without one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

# They return a value to the host, or a tensor whose shape the host has to know.
READING = {
    "aten::_local_scalar_dense",
    "aten::item",
    "aten::equal",
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::bincount",
    "aten::repeat_interleave.Tensor",
}


class Waits(TorchDispatchMode):
    """Records operations that read a value on the host, and copies between host and device."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Sequence[Any] = (), options: Mapping[str, Any] | None = None
    ) -> Any:
        options, name = options or {}, function.name()
        tensors = [value for value in arguments if isinstance(value, Tensor)]
        indices = arguments[1] if name.startswith(("aten::index.", "aten::index_put", "aten::_index_put")) else ()
        indices = [index for index in indices if index is not None]
        reads = name in READING or any(index.dtype == torch.bool for index in indices)
        target = options.get("device")
        copies = name == "aten::_to_copy" and target is not None and torch.device(target).type != tensors[0].device.type
        mixes = any(index.device.type != tensors[0].device.type for index in indices)
        if reads or copies or mixes:
            self.names.append(name)
        return function(*arguments, **options)


@contextmanager
def fake_gpu() -> Iterator[Callable[[Tensor], Tensor]]:
    """Yields a function that moves a tensor to a GPU that computes shapes alone. There a value cannot be read, and
    tensors of different devices cannot be mixed: both are errors."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:

        def move(values: Tensor) -> Tensor:
            # Made anew there, because a copy from the host would count as one in `Waits`.
            return mode.from_tensor(values.detach()).new_empty(values.shape, device="cuda")

        yield move
