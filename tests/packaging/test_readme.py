"""What the documents show works."""

from __future__ import annotations

import re
import sys

import pytest

from .conftest import ROOT, run

EXAMPLES = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("code", EXAMPLES, ids=range(len(EXAMPLES)))
def test_the_readmes_examples_run(code: str) -> None:
    run(sys.executable, "-c", code, cwd=ROOT)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_the_documents_name_files_that_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    paths = set(re.findall(r"`((?:gmkernels|csrc|tests|tools|benchmarks)/[\w./]+)`", text))
    paths |= set(re.findall(r"\]\(([\w./-]+)\)", text))
    assert paths
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def test_the_readme_names_every_variable_that_is_read() -> None:
    # Those of the tests are described where they are used.
    files = [*(ROOT / "gmkernels").rglob("*.py"), *(ROOT / "csrc").rglob("*.cpp"), ROOT / "setup.py"]
    read = {name for file in files for name in re.findall(r"\bGMKERNELS_[A-Z_]+\b", file.read_text())}
    text = (ROOT / "README.md").read_text()
    assert {name for name in read if name not in text} == set()
