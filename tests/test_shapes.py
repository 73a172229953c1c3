"""The shapes of annotated rooms are checked while the tests run."""

from __future__ import annotations

import jaxtyping
import pytest
import torch

from torchloc.sensitivity import couple


def test_a_wrong_shape_is_refused_under_pytest() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        couple(torch.ones(3, 2).double(), torch.ones(3, 4).double())
