"""Connect each test to an empty MLflow store of its own."""

import pytest

from study.tracking.client import connect, local_uri


@pytest.fixture
def client(tmp_path, empty_store):
    (tmp_path / "mlflow.db").write_bytes(empty_store.read_bytes())
    return connect(local_uri(tmp_path), verbose=False)
