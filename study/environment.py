"""Read and set what decides how a command runs: environment variables (docs/environment.md), and versions."""

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.request import getproxies_environment

from study import __version__

TRACKING_URI = "MLFLOW_TRACKING_URI"
CUDA_GRAPHS = "STUDY_CUDA_GRAPHS"
"""Set to 1, trials on GPUs replay a batch's forward and backward pass as a CUDA graph."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
PACKAGES = ("torch", "torchvision", "ray", "optuna", "mlflow", "scikit-learn", "numpy")
"""Packages that a study's results, or the reading of its record, depend on."""


def keep_loopback_direct() -> None:
    """Let no request to this computer itself go through a proxy: its MLflow server would not be found there."""
    if not getproxies_environment():
        return
    listed = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = [host.strip() for host in listed.split(",") if host.strip()]
    if "*" not in hosts:
        hosts += [host for host in LOOPBACK if host not in hosts]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(hosts)


def python_command() -> str:
    """Return "python" where a shell finds this interpreter by that name, else its path."""
    found = shutil.which("python")
    return "python" if found and Path(found).absolute().parent == Path(sys.executable).parent else sys.executable


def find_version(package: str) -> str | None:
    """Return the version of a package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def installed_versions() -> dict[str, str]:
    """Return the installed version of each package that a study depends on."""
    return {"study": __version__, **{package: version(package) for package in PACKAGES}}


def remarks(
    tracking_uri: str | None, ray_address: str | None, *, recorded: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Yield a sentence for each set variable that changes this study, or that has no effect although one may expect it.

    Args:
        tracking_uri: MLflow store of the study; None for the local store.
        ray_address: Ray cluster that the study joins; None for a local Ray.
        recorded: versions of the packages with which a resumed study began; None for a new study.
    """
    get = os.environ.get
    installed = installed_versions() if recorded else {}
    for package, before in (recorded or {}).items():
        if (now := installed.get(package, before)) != before:
            yield f"the study began with {package} {before}, and goes on with {now}: results may differ slightly"
    if get(TRACKING_URI) and recorded is not None and tracking_uri is None:
        yield f"{TRACKING_URI} has no effect: the study began with the local store. --tracking-uri changes that"
    elif get(TRACKING_URI) and get(TRACKING_URI) == tracking_uri:
        yield f"{TRACKING_URI}: runs go to {tracking_uri}"
    if get("MLFLOW_REGISTRY_URI"):
        yield "MLFLOW_REGISTRY_URI has no effect: models are registered in the store of their runs"
    if get("RAY_ADDRESS") and ray_address is None:
        yield "RAY_ADDRESS has no effect: this study starts its own Ray. --ray-address auto joins the cluster"
    if get("RAY_AUTH_MODE") == "disabled" and ray_address is None:
        yield "RAY_AUTH_MODE=disabled: every computer in the network can use this study's Ray"
    if (visible := get("CUDA_VISIBLE_DEVICES")) is not None and ray_address is None:
        yield f"CUDA_VISIBLE_DEVICES={visible}: " + ("only these GPUs are used" if visible else "no GPU is used")
    if get(CUDA_GRAPHS) == "1":
        yield f"{CUDA_GRAPHS}=1: trials on GPUs replay CUDA graphs, which was never measured on a GPU"
    if threads := get("OMP_NUM_THREADS"):
        yield f"OMP_NUM_THREADS={threads}: each trial computes with that many threads, whatever its CPU cores"
