"""Methods that are never compiled, said without loading the compiler.

`torch.compiler.disable` loads torch._dynamo where the decorated class is defined: seconds of every process that only
encodes. torch decorates its own optimisers with the one below, which loads it at the first call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

Given = ParamSpec("Given")
Made = TypeVar("Made")


def uncompiled(method: Callable[Given, Made]) -> Callable[Given, Made]:
    """Return a method that a compiled model calls as it is."""
    return torch._disable_dynamo(method)  # type: ignore[attr-defined]
