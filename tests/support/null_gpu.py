"""Build the null GPU: libraries that take the place of CUDA's, loaded before torch, whose kernels do nothing.

Needs gcc and nm, and a CUDA build of torch, whose calls decide which functions there must be.
"""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

SOURCES = Path(__file__).resolve().parent.parent / "null_gpu"
CALLERS = ("libtorch_cuda.so", "libc10_cuda.so", "libtorch_python.so", "libtorch_cuda_linalg.so")
"""Torch's libraries that call CUDA's runtime, cuBLAS, cuDNN and cuSOLVER."""
ANSWERED = re.compile(r"(cuda[A-Z]|cublas|cusolver|cusparse(?!Lt)|cudnn)\w*")
KEPT = ("cudnnGetVersion", "cudnnGetErrorString", "cudaGetErrorString", "cudaGetErrorName", "cudnnGetCudartVersion")
"""Functions that do not touch a card, which NVIDIA's own libraries answer."""


def why_not() -> str | None:
    """Return why the null GPU cannot be built here; None if it can."""
    missing = [program for program in ("gcc", "nm") if shutil.which(program) is None]
    if missing:
        return f"the null GPU needs {' and '.join(missing)}"
    if _header() is None or not (_torch() / "lib" / CALLERS[0]).exists():
        return "the null GPU needs a CUDA build of torch and NVIDIA's headers, which come with it"
    return None


def build(out: Path) -> dict[str, str]:
    """Build the libraries in `out`, and return the environment of a process that runs on the null GPU."""
    out.mkdir(parents=True, exist_ok=True)
    header = _header()
    assert header, "why_not() has checked"
    (out / "crt").mkdir(exist_ok=True)
    (out / "crt" / "host_defines.h").touch()  # included by NVIDIA's headers; its contents are nvcc's
    called = set().union(*(_undefined(_torch() / "lib" / name) for name in CALLERS))
    runtime = {name for name in called if ANSWERED.fullmatch(name) and name not in KEPT}
    driver = {name for name in _undefined(_torch() / "lib" / "libcaffe2_nvrtc.so") if re.match("cu[A-Z]", name)}
    _compile("null_cuda.c", out / "libnullcuda.so", also=runtime, include=[out, header.parent])
    _compile("null_driver.c", out / "libcuda.so.1", also=driver)
    management = set(re.findall(r"nvml[A-Z]\w+", (_torch() / "lib" / "libc10_cuda.so").read_bytes().decode("latin-1")))
    _compile("null_management.c", out / "libnvidia-ml.so.1", also=management)
    return {
        "LD_PRELOAD": str(out / "libnullcuda.so"),
        "LD_LIBRARY_PATH": str(out),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }


def _torch() -> Path:
    found = importlib.util.find_spec("torch")
    assert found and found.submodule_search_locations
    return Path(found.submodule_search_locations[0])


def _header() -> Path | None:
    return next((_torch().parent / "nvidia").rglob("driver_types.h"), None)


def _undefined(library: Path) -> set[str]:
    """Return the names that a library takes from other libraries."""
    if not library.exists():
        return set()
    done = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True)
    return set(re.findall(r" U ([A-Za-z_0-9]+)", done.stdout))


def _compile(source: str, library: Path, *, also: set[str] = frozenset(), include: list[Path] = ()) -> None:
    """Compile a source, with a function that returns success for each name of `also` that the source lacks."""
    text = (SOURCES / source).read_text()
    own = set(re.findall(r"^int (\w+)\(", text, re.M))
    stubs = library.with_suffix(".c")
    stubs.write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in sorted(also - own)))
    flags = ["-shared", "-fPIC", "-O1", "-w", "-fno-builtin", *(f"-I{directory}" for directory in include)]
    subprocess.run(["gcc", *flags, "-o", library, SOURCES / source, stubs], check=True)
