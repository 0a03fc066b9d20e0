"""Provide an empty MLflow store for each test."""

import pytest

from study.tracking.client import connect, local_uri


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """A migrated database, made once: migrations take seconds."""
    folder = tmp_path_factory.mktemp("store")
    connect(local_uri(folder), verbose=False)
    return folder / "mlflow.db"


@pytest.fixture
def client(tmp_path, empty_store):
    (tmp_path / "mlflow.db").write_bytes(empty_store.read_bytes())
    return connect(local_uri(tmp_path), verbose=False)
