"""Libraries are loaded beside Ray, and never with it: two threads must not import one package's cycles at once."""

import subprocess
import sys

import pytest

from study.api.session import LIBRARIES


@pytest.mark.slow
def test_libraries_loaded_beside_ray_do_not_import_it():
    code = (
        "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]; print('ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *LIBRARIES], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
