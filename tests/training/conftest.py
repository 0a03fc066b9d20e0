"""Keep tests of trials apart: a process keeps its feature store, but each test has a cache directory of its own."""

from collections.abc import Iterator

import pytest

from study.training.run_trial import _open_store


@pytest.fixture(autouse=True)
def _own_store() -> Iterator[None]:
    _open_store.cache_clear()
    yield
    _open_store.cache_clear()
