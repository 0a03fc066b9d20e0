"""torch is loaded beside Ray, and never with it: two threads must not import one package's cycles at once."""

import subprocess
import sys

import pytest

from study.api.session import LIBRARY


@pytest.mark.slow
def test_library_loaded_beside_ray_does_not_import_it():
    code = f"import {LIBRARY}, sys; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
