"""`torch`, imported at its first use.

A recipe is a tree of frozen choices, and showing one, listing them or asking for `--help`
must not cost the second or more that `import torch` takes. Files that hold choices write
`from ornstein.lazy import torch` and then read like any other file.
"""

from typing import TYPE_CHECKING

__all__ = ["torch"]

if TYPE_CHECKING:
    import torch as torch
else:

    class _Torch:
        def __getattr__(self, name):
            import torch

            value = getattr(torch, name)
            setattr(self, name, value)  # the second look-up is an ordinary attribute
            return value

    torch = _Torch()
