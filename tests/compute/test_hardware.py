"""What makes CUDA deterministic, as far as it can be seen without a GPU."""

import pytest
import torch
from torch import nn

from study.compute.hardware import average_pool, make_deterministic

SIDES = [(1, 1), (3, 3), (7, 7), (8, 8), (7, 9), (14, 14), (4, 7)]


@pytest.mark.parametrize("side", SIDES)
def test_average_pool_has_the_means_of_torch(side):
    images = torch.rand(2, 3, *side)
    assert torch.allclose(average_pool(images, (7, 7)), nn.AdaptiveAvgPool2d(7)(images), atol=1e-6)


@pytest.mark.parametrize("side", SIDES)
def test_average_pool_has_the_gradients_of_torch(side):
    ours, theirs = torch.rand(2, 3, *side).requires_grad_(), torch.zeros(2, 3, *side).requires_grad_()
    weights = torch.rand(2, 3, 7, 7)
    (average_pool(ours, (7, 7)) * weights).sum().backward()
    (nn.AdaptiveAvgPool2d(7)(theirs) * weights).sum().backward()
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-5)


def test_make_deterministic_changes_nothing_on_a_cpu():
    network = nn.Sequential(nn.AdaptiveAvgPool2d(7))
    make_deterministic(network, torch.device("cpu"))
    assert "forward" not in vars(network[0])


def test_make_deterministic_leaves_pooling_to_one_cell_alone():
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d((7, 7)))
    make_deterministic(network, torch.device("cuda"))
    assert ["forward" in vars(module) for module in network] == [False, True]
