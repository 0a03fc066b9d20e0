"""The house rules that no single module can show: who imports whom, and what a mistake costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import study

ROOM = Path(study.__file__).parent
LAYERS = [
    ["errors", "families", "seeding"],
    ["config"],
    ["search_space"],
    ["design"],
    ["resume", "flags"],
    ["data", "augment", "memory", "models", "store", "statistics", "figures"],
    ["features", "notebook", "checkpoint", "catalogue"],
    ["training", "journal", "proposals"],
    ["trials"],
    ["record"],
    ["verdict"],
    ["saved", "cluster", "comparison", "samples", "tracking", "trainable", "report_page", "rerun"],
    ["search", "winner", "registry", "reproduce", "bench_training", "report_tested", "report_search"],
    ["report_sections"],
    ["report_comparison"],
    ["report"],
    ["conclusion"],
    ["tuner", "bench_search"],
    ["console"],
    ["run", "predict", "ui", "bench"],
]
"""From the ground up: a module imports only modules of layers below its own."""
HEIGHT = {module: height for height, layer in enumerate(LAYERS) for module in layer}
OUTSIDERS = {
    "mlflow": {"bench_search", "registry", "tracking"},
    "ray": {"bench_search", "cluster", "search", "trainable"},
    "optuna": {"bench_search", "journal", "proposals", "record", "report_search", "run", "trials"},
}
"""Packages that only these modules may import."""


def imports(module: str) -> set[str]:
    """Every module that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse((ROOM / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= (
                {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "study" else {node.module}
            )
    return found


def test_every_module_has_its_layer():
    assert {path.stem for path in ROOM.glob("*.py")} - {"__init__"} == set(HEIGHT)


@pytest.mark.parametrize("module", HEIGHT)
def test_imports_go_downward_only(module):
    ours = {name.split(".")[1] for name in imports(module) if name.startswith("study.")}
    assert {name for name in ours if HEIGHT[name] >= HEIGHT[module]} == set()


@pytest.mark.parametrize("package", OUTSIDERS)
def test_only_its_adapters_import_a_package(package):
    users = {module for module in HEIGHT if any(name.split(".")[0] == package for name in imports(module))}
    assert users <= OUTSIDERS[package]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--baseline", "vgg61"],
        ["--baseline", "--fraction", "7"],
        ["--baseline", "--weights", "no-such-file.pth"],
        ["--search", "bad.toml"],
    ],
)
def test_help_and_mistakes_need_no_heavy_import(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bad.toml").write_text('model = "resnet18"\n[space]\nlr = { type = "int", low = 1, high = 2 }\n')
    code = (
        "import sys; from study import run\n"
        f"try: run.main({arguments!r})\n"
        "except SystemExit as left: assert left.code == (2 if 'help' not in sys.argv[1] else 0)\n"
        "heavy = {'torch', 'ray', 'optuna', 'mlflow', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    seen = subprocess.run([sys.executable, "-c", code, arguments[0]], capture_output=True, text=True)
    assert seen.returncode == 0, seen.stderr
