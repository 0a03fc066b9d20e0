import pytest

from study.errors import without_credentials


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://me:secret@host:5000/path", "http://host:5000/path"),
        ("postgresql://me:secret@host/db", "postgresql://host/db"),
        ("http://host:5000", "http://host:5000"),
        ("API request to http://me:p@ss@host/api failed: a@b", "API request to http://host/api failed: a@b"),
        ("sqlite:////my@studies/mlflow.db", "sqlite:////my@studies/mlflow.db"),
    ],
)
def test_credentials_are_left_out_and_nothing_else(uri, shown):
    assert without_credentials(uri) == shown
