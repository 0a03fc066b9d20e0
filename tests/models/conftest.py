"""Provide the model tests' weights, which take seconds to make, and images."""

import pytest
import torch
from support.weights import SMALL, new_state
from torch import Tensor

from study.models.state_dict import StateDict


@pytest.fixture(scope="module")
def resnet18() -> StateDict:
    return new_state("resnet18")


@pytest.fixture(scope="module")
def small() -> StateDict:
    return new_state(SMALL)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
