"""Tables fit a terminal, and break no name."""

import io

import pytest

from study.config.load_toml import BACKBONES, load_space
from study.console.tables import probe_table
from study.ticker import Screen
from study.verdict.screen import ProbeRow


@pytest.mark.parametrize("model", load_space(BACKBONES).models)
def test_probe_table_breaks_no_name_on_80_columns(model):
    row = ProbeRow(model, {"accuracy": 0.888}, 0.857, 0.913, 93.0, 87_000_000, 234.0, hopeless=False)
    output = io.StringIO()
    Screen(file=output, width=80).print(probe_table([row], "accuracy"))
    lines = output.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    cells = [line.strip("│ ").split("│")[0].strip() for line in lines]
    name, _, tag = model.rpartition("/")[2].partition(".")
    assert {name, f".{tag}" if tag else name} <= {*cells}
