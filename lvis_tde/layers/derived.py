"""Tensors that are functions of parameters, kept for as long as the parameters stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["DerivedTensors"]


class DerivedTensors:
    """A small cache: each entry is dropped when a tensor or setting it was made from changes.

    In-place changes (an optimizer's step, ``load_state_dict``, a buffer's ``copy_``), replaced
    tensors and moves to another device or type are noticed. A change through ``.data`` or by a
    collective is not: :meth:`clear` after it. Nothing is kept where a gradient may be asked for or
    a graph is being recorded, nor in a copy or pickle.
    """

    def __init__(self):
        self._entries = {}

    def __reduce__(self):
        return type(self), ()

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()

    def get(
        self,
        name: str,
        compute: Callable[[], Tensor],
        sources: Sequence[Tensor],
        settings: tuple = (),
    ) -> Tensor:
        """Returns ``compute()``, or what it gave for the same sources and settings.

        Args:
            name: one entry is kept a name.
            compute: gives the tensor; a function of sources and settings alone.
            sources: tensors it is made from.
            settings: comparable values it depends on.
        """
        if torch.is_grad_enabled():
            # A step of an optimizer needs a pass like this one, and fused ones leave no trace in
            # the version of a parameter.
            self._entries.clear()
            return compute()
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return compute()
        if not all(map(_is_plain, sources)):
            return compute()
        key = (settings, *((t.data_ptr(), t._version, t.dtype, t.device) for t in sources))
        entry = self._entries.get(name)
        if entry is None or entry[0] != key:
            # An alias of each source keeps its memory from being given to another tensor.
            entry = self._entries[name] = (key, compute(), [t.detach() for t in sources])
        return entry[1]


def _is_plain(tensor: Tensor) -> bool:
    # Stand-ins of compilers and exporters are subclasses; inference tensors have no version.
    return type(tensor) in (Tensor, torch.nn.Parameter) and not tensor.is_inference()
