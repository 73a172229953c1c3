"""Shapes in signatures: `Float[Tensor, "*rows A"]`.

Checked under pytest, where jaxtyping is installed; free otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Float, Int
else:
    try:
        from jaxtyping import Float, Int
    except ImportError:

        class _Unchecked:
            def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
                return item[0]

        Float = Int = _Unchecked

__all__ = ["Float", "Int"]
