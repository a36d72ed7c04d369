from __future__ import annotations

import pytest
import torch
from torch import Tensor

from training.products import Outer, dense, multiplying


def _outer(n: int = 7) -> Outer:
    of = torch.Generator().manual_seed(0)
    return Outer(torch.randn(n, 5, generator=of), torch.randn(n, 3, generator=of), 0.25)


def test_a_product_left_undone_is_its_matrix_wherever_it_is_used() -> None:
    outer = _outer()
    matrix: Tensor = 0.25 * sum(torch.outer(x, y) for x, y in zip(outer.x, outer.y, strict=True))
    torch.testing.assert_close(outer.dense(), matrix)
    torch.testing.assert_close(outer.transposed().dense(), matrix.T)
    torch.testing.assert_close(outer.times(torch.arange(3.0)), matrix @ torch.arange(3.0))
    total = torch.ones(5, 3)
    outer.add_to(total, -2.0)
    torch.testing.assert_close(total, 1 - 2 * matrix)
    bias = torch.ones(3)
    assert dense({"W": outer, "b": bias})["b"] is bias
    torch.testing.assert_close(dense({"W": outer})["W"], matrix)


def test_the_precision_of_products_is_as_before_afterwards_whatever_happened() -> None:
    before = torch.get_float32_matmul_precision()
    with multiplying("bfloat16"):
        assert torch.get_float32_matmul_precision() == "medium"
        with multiplying("float32"):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
    with pytest.raises(ZeroDivisionError), multiplying("bfloat16"):
        _ = 1 / 0
    assert torch.get_float32_matmul_precision() == before
