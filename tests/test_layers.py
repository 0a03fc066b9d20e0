"""The layers that no single module can show: who imports whom, and what `--help` and mistakes cost."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import study

ROOT = Path(study.__file__).parent
GROUND = [
    "errors", "seeding", "formatting", "files", "environment", "command_line", "output", "limits", "exit_codes",
    "ticker", "progress", "other_process",
]  # fmt: skip
PACKAGES = {
    "config": [
        "validation", "catalogue", "recipe", "search_space", "paths", "load_toml", "plan", "manifest",
        "resume_flags", "flags",
    ],
    "results": [
        "arrays", "metrics", "clock", "journal", "optuna_adapters", "trial_record", "record", "ledger",
    ],
    "verdict": [
        "statistics", "metric_intervals", "verdict", "judge", "rerank", "screen", "prior", "estimate", "wording",
        "trial_table",
    ],
    "data": [
        "stored_pixels", "rows", "images", "splits", "image_files", "layouts", "pixel_store", "decoding", "audit",
        "sources",
    ],
    "networks": ["architectures", "cut", "libraries", "parts", "twins", "operations"],
    "models": [
        "state_dict", "untrained", "classifier", "preprocessing", "pretrained", "list_models", "saved_model",
    ],
    "augmentation": ["augment", "mixing"],
    "compute": ["hardware", "depthwise", "gpu_cache", "feature_file", "feature_store", "features", "sharing"],
    "training": ["reference", "passes", "updates", "checkpoint", "probe", "loop", "run_trial"],
    "export": ["formats", "timm_config", "card", "__main__"],
    "charts": ["figures", "svg", "intervals", "confusion", "curves", "parallel"],
    "report": [
        "elements", "copies", "sample_batch", "summary", "trial_sections", "search_sections", "study_page",
        "compare_studies", "render", "__main__",
    ],
    "tracking": ["client", "artifacts", "tracker", "registry"],
    "dispatch": ["cluster", "stages", "node_images", "trainable", "searcher", "scheduler", "run_trials"],
    "tuning": ["reuse_refits", "keep_model", "finish_study", "prepare", "run_study", "reproduce"],
    "console": ["tables", "ending", "live"],
    "api": [
        "planning", "session", "keywords", "notebook", "running", "inputs", "predictions", "audits", "handle",
        "functions",
    ],
    "upkeep": ["inventory", "removal", "caches"],
    "bench": ["training", "orchestration", "large_data", "stock", "answer", "__main__"],
}  # fmt: skip
"""Packages and their modules, both from the ground up: a module imports only what stands before it."""
COMMANDS = ["run", "predict", "audit", "studies", "ui", "__main__"]
"""Commands import from every package, and nothing imports them."""
ORDER = [*GROUND, *(f"{package}.{module}" for package in PACKAGES for module in PACKAGES[package]), *COMMANDS]
ADAPTERS = {
    "torch": {
        "data", "networks", "models", "augmentation", "compute", "training", "export", "report", "tracking", "dispatch",
        "tuning", "bench", "api",
    },
    "mlflow": {"tracking", "bench"},
    "ray": {"dispatch", "bench"},
    "optuna": {"results", "bench", "api"},
}  # fmt: skip
"""Libraries, and the packages and commands that may import them."""


def modules_of(package: str) -> set[str]:
    return {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__"}


def imports(module: str) -> set[str]:
    """Return every module that a module imports, anywhere in its code; our own without 'study.'."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    ours = {name.removeprefix("study.") for name in found if name.startswith("study.")}
    return {name for name in ours if name in ORDER} | {name for name in found if not name.startswith("study")}


def test_every_module_has_its_place():
    assert modules_of(".") == {*GROUND, *COMMANDS}
    assert {package: modules_of(package) for package in PACKAGES} == {name: {*held} for name, held in PACKAGES.items()}
    assert all(len(held) <= 10 for held in PACKAGES.values())


def test_every_package_is_installed():
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())
    installed = project["tool"]["setuptools"]["packages"]
    assert {*installed} == {"study", "study.search_spaces", *(f"study.{package}" for package in PACKAGES)}


def assert_imports_go_down(modules: list[str]) -> None:
    for module in modules:
        above = ORDER[ORDER.index(module) :]
        assert imports(module).isdisjoint(above), f"{module} imports what stands beside or above it"


@pytest.mark.parametrize("package", PACKAGES)
def test_package_imports_go_down(package):
    assert_imports_go_down([f"{package}.{module}" for module in PACKAGES[package]])


def test_ground_and_command_imports_go_down():
    assert_imports_go_down([*GROUND, *COMMANDS])


@pytest.mark.parametrize("library", ADAPTERS)
def test_only_adapters_import_a_library(library):
    users = {module for module in ORDER if any(name.split(".")[0] == library for name in imports(module))}
    assert {module.split(".")[0] for module in users} <= ADAPTERS[library]


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
        f"try: code = run.main({arguments!r})\n"
        "except SystemExit as left: code = left.code\n"
        "assert code == (2 if 'help' not in sys.argv[1] else 0)\n"
        "heavy = {'torch', 'ray', 'optuna', 'mlflow', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    seen = subprocess.run([sys.executable, "-c", code, arguments[0]], capture_output=True, text=True)
    assert seen.returncode == 0, seen.stderr


def test_test_names_have_at_most_ten_words():
    tests = Path(__file__).parent
    names = [
        name for file in tests.rglob("*.py") for name in re.findall(r"^def test_(\w+)", file.read_text(), re.MULTILINE)
    ]
    assert [name for name in names if len(name.split("_")) > 10] == []
