"""The README and the pages of docs/: links lead somewhere, and commands do what they are shown for.

CONTRIBUTING.md says which comments keep a command from being run. All pages share one directory; the README comes
first.
"""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.saved_models import make_saved

from study.config.flags import build_parser, fill_in, read_space

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", *sorted(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md"))]
PROSE = [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md"]
COMMANDS = ["run", "predict", "audit", "export", "report", "studies", "ui", "bench"]
MARK = re.compile(r"#\s+(?:needs|takes|runs until)\s")
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", read(page), re.DOTALL | re.MULTILINE)


def anchors(page: str) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", without_code(read(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: str) -> Iterator[str]:
    """The links of a page that lead to no file of the checkout, or to no heading of it."""
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(read(page))):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        if not target.exists() or (anchor and anchor not in anchors(os.path.relpath(target, ROOT))):
            yield link


def commands(page: str) -> Iterator[str]:
    """The commands of a page's sh blocks: a line, or as many as its quotes, backslashes and pipes join."""
    for block in blocks(page, "sh"):
        held = ""
        for line in block.splitlines():
            held += f"{line}\n"
            try:
                shlex.split(held, comments=True)
            except ValueError:  # an open quote
                continue
            if not re.search(r"(?:\\|\|)$", line):
                yield held
                held = ""
        assert held == "", f"{page}: {held} has no end"


def is_run(command: str) -> bool:
    """Whether the tests run a command: it has no mark, and does not set up an environment."""
    return not MARK.search(command) and ".venv" not in command


@cache
def flags_of(command: str) -> set[str]:
    """The flags in the usage line of a command's own help."""
    shown = subprocess.run(
        [sys.executable, "-m", f"study.{command}", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    return set(FLAG.findall(shown.stdout.partition("\n\n")[0]))


def prepare(room: Path) -> None:
    """Lay what the pages take for granted: photos, a folder of pets, a space, and a study that took hours."""
    generator = np.random.default_rng(0)
    photos = ["photo.jpg", "holiday/0001.jpg"]
    pets = [f"pets/{split}/{name}/{number}.jpg" for split in ("train", "test") for name in ("cat", "dog")
            for number in range(6)]  # fmt: skip
    for path in [*photos, *pets]:
        file = room / path
        file.parent.mkdir(parents=True, exist_ok=True)
        shades = generator.integers(0, 256, (4, 5, 3), np.uint8)
        Image.fromarray(shades).resize((80, 64), Image.Resampling.NEAREST).save(file)
    (room / "my_space.toml").write_text(blocks("docs/search-spaces.md", "toml")[0])
    study = room / "mlruns" / "studies" / "pets-1"
    make_saved(study / "model")
    (study / "journal.log").touch()
    os.utime(study / "journal.log", (0, 0))  # not the latest


def run_page(page: str, room: Path) -> list[str]:
    """Run a page's commands in order, and say which failed."""
    bin_directory = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{bin_directory}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        "XDG_CACHE_HOME": str(room / "cache"),
        "MPLBACKEND": "agg",
    }
    failures = []
    for command in filter(is_run, commands(page)):
        done = subprocess.run(
            ["bash", "-c", command], cwd=room, env=environment, capture_output=True, text=True, timeout=500
        )
        if done.returncode:
            failures.append(f"{command}exit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return failures


@pytest.fixture(scope="module")
def after_readme(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which the README's commands have been run."""
    room = tmp_path_factory.mktemp("readme")
    prepare(room)
    assert run_page("README.md", room) == []
    return room


@pytest.mark.parametrize("page", PROSE)
def test_links_lead_to_files_and_headings(page):
    assert [*broken_links(page)] == []


@pytest.mark.parametrize("page", PAGES[1:])
def test_readme_links_every_page(page):
    assert f"]({page})" in read("README.md")


def test_readme_has_at_most_170_lines():
    assert len(read("README.md").splitlines()) <= 170


@pytest.mark.parametrize("name", COMMANDS)
def test_command_reference_names_exactly_the_flags_there_are(name):
    section = read("docs/command-reference.md").partition(f"## python -m study.{name}\n")[2].partition("\n## ")[0]
    assert set(FLAG.findall(section)) == flags_of(name) - {"--version"}  # which every command has


@pytest.mark.parametrize("page", PAGES)
def test_marked_study_commands_have_flags_that_parse(page, tmp_path, monkeypatch):
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    for command in commands(page):
        if not MARK.search(command):
            continue
        words = shlex.split(command, comments=True)
        if "study.run" in words:
            options = build_parser().parse_args(words[words.index("study.run") + 1 :])
            fill_in(options)
            for space in options.search or []:
                read_space(space, options)


@pytest.mark.parametrize("page", PAGES)
def test_search_spaces_in_pages_are_valid(page, tmp_path):
    file = tmp_path / "shown.toml"
    for block in blocks(page, "toml"):
        file.write_text(block)
        read_space(str(file), build_parser().parse_args(["--search", str(file)]))


@pytest.mark.parametrize("page", PAGES)
def test_pages_name_no_flag_that_does_not_exist(page):
    named = set(FLAG.findall(" ".join(re.findall(r"`[^`]+`", without_code(read(page))))))
    assert named - set().union(*map(flags_of, COMMANDS)) <= {"--help"}


@pytest.mark.parametrize("what", [r"pip install --quiet '(.*?)'", r"-m pytest (.*)"])
def test_ci_installs_and_tests_as_the_readme_says(what):
    (ours,) = re.findall(what, read(".ci/run"))
    assert any(ours in command for command in commands("README.md") if ".venv" in command)


def test_the_version_has_one_place():
    project = tomllib.loads(read("pyproject.toml"))
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "study.__version__"}


@pytest.mark.slow
def test_commands_of_the_readme_succeed(after_readme):
    assert (after_readme / "mlruns" / "studies" / "try" / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES[1:] if any(map(is_run, commands(page)))])
def test_commands_of_a_page_succeed(page, after_readme):
    assert run_page(page, after_readme) == []
