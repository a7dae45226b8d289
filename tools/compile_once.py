"""``compile_once.py FOLDER COMPILER ARGUMENT...``: a compiler that keeps its objects in FOLDER and makes none twice.

For ``CMAKE_CXX_COMPILER_LAUNCHER``. A run of ``.ci/run`` builds the core in place and builds it again, in another folder
and behind pip's build isolation, for the tests of the wheel; every file of the second build is then found here. An object
is known by the compiler, its options and the preprocessed source, of which it is a function: there is no debug
information, and so no path, in it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# What names files; their contents are in the preprocessed source.
PLACES = ("-I", "-isystem", "-MF", "-MT", "-MQ", "-o", "-c")


def options(arguments: list[str]) -> list[str]:
    """The arguments that are not names of files."""
    kept, rest = [], iter(arguments)
    for argument in rest:
        if argument in PLACES:
            next(rest)
        elif not argument.startswith("-I"):
            kept.append(argument)
    return kept


def key(compiler: str, arguments: list[str]) -> str | None:
    """A name for the object, or None where the compiler has to speak for itself. Writes the list of headers, if asked."""
    state = os.stat(shutil.which(compiler) or compiler)
    with tempfile.NamedTemporaryFile(suffix=".ii") as text:
        asked = ["-E" if argument == "-c" else argument for argument in arguments]
        asked[asked.index("-o") + 1] = text.name
        # -P: without the names of the files that the lines come from.
        if subprocess.run([compiler, *asked, "-P"], capture_output=True).returncode:
            return None
        source = Path(text.name).read_bytes()
    made_with = [os.path.realpath(shutil.which(compiler) or compiler), str(state.st_size), str(state.st_mtime_ns)]
    return hashlib.sha256("\0".join([*made_with, *options(arguments), ""]).encode() + source).hexdigest()


def main(folder: Path, compiler: str, arguments: list[str]) -> int:
    name = key(compiler, arguments) if "-c" in arguments and "-o" in arguments else None
    if name is None:
        return subprocess.run([compiler, *arguments]).returncode
    kept, made = folder / f"{name}.o", Path(arguments[arguments.index("-o") + 1])
    if kept.exists():
        shutil.copyfile(kept, made)
        return 0
    status = subprocess.run([compiler, *arguments]).returncode
    if status == 0:
        folder.mkdir(parents=True, exist_ok=True)
        # Written beside and renamed: two builds may be at work.
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as copy:
            copy.write(made.read_bytes())
        Path(copy.name).replace(kept)
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
