"""How evenly rows spread, against numpy and closed forms."""

import numpy as np
import pytest
import torch

from mgd_ssl.training.collapse import effective_rank, spread, warning_of


def test_effective_rank_is_the_entropy_of_numpys_singular_values() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((40, 16), (16, 40)):
        rows = torch.randn(shape, generator=generator) * torch.linspace(0.01, 3, shape[1])
        values = np.linalg.svd(rows.double().numpy(), compute_uv=False)
        shares = values / values.sum()
        assert effective_rank(rows).item() == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-5)


def test_effective_rank_of_known_rows() -> None:
    assert effective_rank(torch.eye(7)).item() == pytest.approx(7, rel=1e-6)
    assert effective_rank(torch.ones(9, 5)).item() == pytest.approx(1, rel=1e-5)
    assert effective_rank(torch.zeros(9, 5)).item() == pytest.approx(1, abs=1e-6)


def test_spread_is_that_of_rows_of_unit_length() -> None:
    rows = np.random.default_rng(0).normal(size=(500, 8)) + 0.3
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    expected = unit.std(axis=0).mean() * np.sqrt(8)
    assert spread(torch.from_numpy(rows)).item() == pytest.approx(expected, rel=1e-5)
    everywhere = torch.randn(20_000, 64, generator=torch.Generator().manual_seed(0))
    assert spread(everywhere).item() == pytest.approx(1, abs=0.01)
    assert spread(torch.rand(6, 1) * torch.ones(6, 5)).item() == pytest.approx(0, abs=1e-3)


def test_warning_tells_of_a_line_and_of_a_point() -> None:
    assert warning_of({"embedding_rank": 30.0, "embedding_spread": 0.9}) is None
    for rank, found in ((1.2, 0.9), (30.0, 0.001)):
        told = warning_of({"embedding_rank": rank, "embedding_spread": found})
        assert told is not None and f"effective rank {rank:.2f}, spread {found:.3f}" in told
