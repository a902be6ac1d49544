"""`torch` and `numpy`, imported at their first use.

A recipe is a tree of frozen choices, and showing one, listing them or asking for `--help`
must not cost the second or more that `import torch` takes. Files that hold choices write
`from ornstein.lazy import torch` and then read like any other file.
"""

from typing import TYPE_CHECKING

__all__ = ["numpy", "torch"]

if TYPE_CHECKING:
    import numpy as numpy
    import torch as torch
else:

    class _Lazy:
        def __init__(self, name):
            self._module = name

        def __getattr__(self, name):
            from importlib import import_module

            value = getattr(import_module(self._module), name)
            setattr(self, name, value)  # the second look-up is an ordinary attribute
            return value

    numpy, torch = _Lazy("numpy"), _Lazy("torch")
