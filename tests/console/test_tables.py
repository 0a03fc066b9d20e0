"""Tables fit a terminal, and break no name."""

import io
from dataclasses import replace

import pytest
from support.manifests import make_manifest, make_space, small_recipe

from study.config.load_toml import BACKBONES, load_space
from study.config.plan import Plan
from study.config.search_space import Categorical
from study.console.tables import best_table, probe_table
from study.results.metrics import EpochResult
from study.results.record import Record
from study.ticker import Screen
from study.verdict.screen import ProbeRow


def test_table_of_the_best_trials_tells_long_names_apart(tmp_path):
    names = ("timm/tf_efficientnet_lite0", "timm/tf_efficientnet_lite1")
    base = small_recipe(model=names[0])
    space = make_space(domains={"model": Categorical(names)}, base=base)
    record = Record.create(tmp_path / "one", make_manifest(space=space))
    record.add(Plan(None, "search", replace(base, model=name), 0) for name in names)
    for _ in names:
        plan = record.next_trial()
        record.epoch(plan, EpochResult(1, 1.0, 1.0, 1.0, val_loss=1.0, val_confusion=[[9, 1], [4, 0]]))
    output = io.StringIO()
    Screen(file=output, width=60).print(best_table(record.trials(), 5, record.manifest))
    record.close()
    assert "…" not in output.getvalue()
    cells = "".join(line.strip("│ ").split("│")[0].strip() for line in output.getvalue().splitlines())
    assert all(name in cells for name in names)


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
