#!/usr/bin/env python3
"""The gateway as one zip that Azure Functions run as it is: with its packages, compiled.

    python3.13 infra/package.py [--output dist/llamaxing.zip]

It is for the Python that runs this, on Linux and x86-64, whatever runs here. What `.funcignore`
leaves goes into it, models.json and identities.json too where they are there, and what
requirements.txt asks for. Standard library only.
"""

from __future__ import annotations

import argparse
import compileall
import fnmatch
import py_compile
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Where the platform unpacks it, for tracebacks; and where its worker looks for packages there.
DEPLOYED = "/home/site/wwwroot"
PACKAGES = ".python_packages/lib/site-packages"
# From new to old: pip takes the first that there is.
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
# What nobody imports: programs, type stubs, sources of extensions, and tests.
NEEDLESS = ("bin", "samples", "tests", "test", "*.pyi", "*.pyx", "*.pxd", "*.c", "*.h", "*.hash")


def main(arguments: Sequence[str]) -> int:
    options = argparse.ArgumentParser(
        usage=argparse.SUPPRESS,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--output", default="dist/llamaxing.zip", type=Path)
    output: Path = options.parse_args(arguments).output
    with tempfile.TemporaryDirectory() as folder:
        app = Path(folder)
        build(app)
        unpacked, zipped = archive(app, output)
    print(f"{output}: {zipped / 1e6:.1f} MB, {unpacked / 1e6:.1f} MB unpacked")
    return 0


def build(app: Path) -> None:
    """Makes the app in an empty folder, as it is when the platform has unpacked it."""
    for path in published():
        target = app / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, target)
    install(app / PACKAGES)
    prune(app / PACKAGES)
    compile_all(app)


def published(root: Path = ROOT) -> Iterator[Path]:
    """The files that `.funcignore` leaves. All of its patterns are for one name of a path."""
    lines = (root / ".funcignore").read_text(encoding="utf-8").splitlines()
    patterns = [line.rstrip("/") for line in lines if line and not line.startswith("#")]

    def walk(folder: Path) -> Iterator[Path]:
        for path in sorted(folder.iterdir()):
            if any(fnmatch.fnmatch(path.name, it) for it in patterns):
                continue
            if path.is_dir():
                yield from walk(path)
            else:
                yield path.relative_to(root)

    return walk(root)


def install(folder: Path) -> None:
    version = "{}.{}".format(*sys.version_info)
    wheels = ("--only-binary=:all:", "--implementation=cp", f"--python-version={version}")
    platforms = [f"--platform={it}" for it in PLATFORMS]
    quiet = ("-qq", "--disable-pip-version-check", "--no-compile", "--no-warn-conflicts")
    files = ("--target", str(folder), "-r", str(ROOT / "requirements.txt"))
    command = [sys.executable, "-m", "pip", "install", *quiet, *wheels, *platforms, *files]
    if subprocess.call(command) != 0:
        sys.exit("package.py: pip could not install requirements.txt; its own words are above")


def prune(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        if not any(fnmatch.fnmatch(path.name, it) for it in NEEDLESS):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def compile_all(app: Path) -> None:
    """Beside the sources, and never compared with them: they do not change there, and the time
    stamps of files may, on the way."""
    done = compileall.compile_dir(
        app,
        quiet=2,
        workers=0,
        stripdir=str(app),
        prependdir=DEPLOYED,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    if not done:
        print("package.py: some files cannot be compiled, and are shipped as they are")


def archive(app: Path, output: Path) -> tuple[int, int]:
    """Bytes of what is in it, and of itself."""
    output.parent.mkdir(parents=True, exist_ok=True)
    files = sorted(path for path in app.rglob("*") if path.is_file())
    with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED) as into:
        for path in files:
            into.write(path, path.relative_to(app))
    return sum(path.stat().st_size for path in files), output.stat().st_size


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
