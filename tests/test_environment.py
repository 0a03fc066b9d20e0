"""Which environment variables are honoured, which have no effect, and that each of them is said and documented."""

import os
from pathlib import Path

import pytest

from study.dispatch import cluster
from study.environment import CUDA_GRAPHS, find_version, installed_versions, keep_loopback_direct, remarks
from study.tracking import client

DOCS = Path(__file__).parents[1] / "docs" / "environment.md"


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    for name in (*os.environ,):
        if name.lower().endswith("_proxy") or name.startswith(("MLFLOW_", "RAY_", "CUDA_", "OMP_", "STUDY_")):
            monkeypatch.delenv(name)


def test_plain_environment_has_no_remarks():
    assert list(remarks(None, None)) == []


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("MLFLOW_REGISTRY_URI", "http://host", "MLFLOW_REGISTRY_URI has no effect"),
        ("RAY_ADDRESS", "10.0.0.1:6379", "RAY_ADDRESS has no effect"),
        ("RAY_AUTH_MODE", "disabled", "every computer in the network can use"),
        ("CUDA_VISIBLE_DEVICES", "0,1", "CUDA_VISIBLE_DEVICES=0,1: only these GPUs"),
        ("CUDA_VISIBLE_DEVICES", "", "no GPU is used"),
        ("STUDY_CUDA_GRAPHS", "1", "never measured on a GPU"),
        ("OMP_NUM_THREADS", "1", "OMP_NUM_THREADS=1"),
    ],
)
def test_variable_that_matters_is_said(monkeypatch, name, value, said):
    monkeypatch.setenv(name, value)
    (line,) = remarks(None, None)
    assert said in line


def test_tracking_store_of_the_environment_is_said(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host")
    assert list(remarks("http://host", None)) == ["MLFLOW_TRACKING_URI: runs go to http://host"]


def test_resumed_study_stays_in_its_store(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host")
    (line,) = remarks(None, None, recorded=installed_versions())
    assert line.startswith("MLFLOW_TRACKING_URI has no effect")


def test_other_versions_than_recorded_are_said():
    (line,) = remarks(None, None, recorded={**installed_versions(), "optuna": "9.0"})
    assert line.startswith("the study began with optuna 9.0, and goes on with ")


@pytest.mark.parametrize("present", ["", "intra.net, 10.0.0.1"])
def test_loopback_joins_the_hosts_without_proxy(monkeypatch, present):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", present)
    keep_loopback_direct()
    hosts = os.environ["no_proxy"].split(",")
    assert {"localhost", "127.0.0.1", "::1", *present.replace(" ", "").split(",")} - {""} == {*hosts}
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"]


def test_without_a_proxy_nothing_is_set():
    keep_loopback_direct()
    assert "no_proxy" not in os.environ


def test_every_variable_that_is_set_is_documented():
    page = DOCS.read_text(encoding="utf-8")
    names = {CUDA_GRAPHS, *client.ENVIRONMENT, *cluster.ENVIRONMENT, *cluster.TRIAL_ENVIRONMENT}
    assert [name for name in sorted(names) if f"`{name}`" not in page] == []


def test_version_of_a_missing_package_is_none():
    assert find_version("numpy")
    assert find_version("no-such-package") is None
