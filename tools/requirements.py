"""Print what this distribution needs at run time and for the named extras, one requirement a line.

``make`` installs these before it builds the package, so that a change in csrc costs a build and no dependency check.
"""

from __future__ import annotations

import sys
from pathlib import Path

from setuptools.config.pyprojecttoml import read_configuration


def requirements(project: dict[str, object], extras: list[str]) -> list[str]:
    """The dependencies of the project and of ``extras``, an extra named inside an extra resolved."""
    found = dict.fromkeys(project["dependencies"])
    waiting = list(extras)
    while waiting:
        for item in project["optional-dependencies"][waiting.pop()]:
            if item.startswith(f"{project['name']}["):
                waiting += item[item.index("[") + 1 : item.index("]")].split(",")
            else:
                found[item] = None
    return list(found)


if __name__ == "__main__":
    root = Path(__file__).resolve().parent.parent
    project = read_configuration(root / "pyproject.toml", expand=False)["project"]
    print(*requirements(project, sys.argv[1:]), sep="\n")
