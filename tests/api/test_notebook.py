"""A notebook's cell shows a study's lines in one output, and does not grow with every epoch."""

import json
import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from study.api.notebook import MAX_LINES, CellOutput, notebook_screen


class Cell:
    """What IPython's display does: it shows an output, and returns a handle that replaces it."""

    def __init__(self):
        self.outputs = 0
        self.updates = 0
        self.html = ""

    def __call__(self, bundle, *, raw, display_id):
        self.outputs += 1
        self.html = bundle["text/html"]
        return self

    def display(self, bundle, *, raw, update):
        self.updates += 1
        self.html = bundle["text/html"]


def test_there_is_no_notebook_screen_outside_of_notebooks():
    assert notebook_screen() is None


def test_lines_of_a_trial_replace_each_other():
    output = CellOutput(Cell())
    output.write("data  pets\n#0 resnet18  epoch 1/2\n#1 resnet18  starting\n")
    output.write("#0 resnet18  epoch 2/2\n")
    assert output.text().splitlines() == ["data  pets", "#1 resnet18  starting", "#0 resnet18  epoch 2/2"]


def test_lines_about_decoding_replace_each_other():
    output = CellOutput(Cell())
    output.write("decoding 1,000 of 4,000 images, 90 images/s\ndecoding 2,000 of 4,000 images, 90 images/s\n")
    assert output.text() == "decoding 2,000 of 4,000 images, 90 images/s"


def test_lines_about_the_time_left_replace_each_other():
    output = CellOutput(Cell())
    output.write("time     about 42s left\n#0 resnet18  starting\ntime     at most 9m00s left\n")
    assert output.text().splitlines() == ["#0 resnet18  starting", "time     at most 9m00s left"]


def test_equal_lines_are_both_kept():
    output = CellOutput(Cell())
    output.write("\naudit    twice\naudit    twice\n")
    assert output.text().count("twice") == 2


def test_output_stays_bounded_and_counts_the_rest():
    output = CellOutput(Cell())
    output.write("".join(f"line {number}\n" for number in range(MAX_LINES + 5)))
    assert output.text().startswith("… 5 earlier lines\nline 5\n")


def test_one_output_is_updated_not_often():
    cell = Cell()
    output = CellOutput(cell)
    for number in range(1000):
        output.write(f"#{number} <resnet18>\n")
    output.show()
    assert cell.outputs == 1
    assert cell.updates < 500
    assert "#999 &lt;resnet18&gt;" in cell.html


NOTEBOOK = Path(__file__).parents[2] / "docs" / "assignment.ipynb"


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook of the docs, run in an empty directory by a kernel of its own."""
    room = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.read(NOTEBOOK, 4)
    environment = {**os.environ, "XDG_CACHE_HOME": str(room / "cache"), "PYTHONPATH": str(NOTEBOOK.parents[1])}
    NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(room)}}).execute(env=environment)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the kernel's client
def test_notebook_of_the_docs_ends_with_both_studies(executed):
    assert "['notebook-search', 'notebook-baseline']" in executed[-1].outputs[0].data["text/plain"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_progress_of_a_study_is_one_output(executed):
    shown = [cell.outputs for cell in executed if cell.source.startswith(("baseline =", "found ="))]
    assert [len(outputs) for outputs in shown] == [1, 1]
    assert all(outputs[0].data["text/plain"].count("\n#0 ") == 1 for outputs in shown)


def test_notebook_of_the_docs_is_small_and_names_no_computer():
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 200_000
    assert "/venv" not in text and "/home" not in text
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] for cell in cells[1:])
