"""House rules that a machine can check."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILE_LINES = 800
FUNCTION_LINES = 70
OPEN_ENDS = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X")) + r")\b")
REGISTRY = re.compile(r"(index-url|find-links|https?://\S*(/simple\b|pypi))", re.IGNORECASE)


def tracked() -> list[Path]:
    try:
        done = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def sources(*suffixes: str) -> list[tuple[str, str]]:
    return [
        (str(path.relative_to(ROOT)), path.read_text())
        for path in tracked()
        if path.suffix in suffixes
    ]


def test_files_are_short() -> None:
    long = [name for name, text in sources(".py", ".c", ".h") if text.count("\n") > FILE_LINES]
    assert not long


def test_functions_are_short() -> None:
    long = []
    for name, text in sources(".py"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > FUNCTION_LINES:
                    long.append(f"{name}: {node.name} ({lines} lines)")
    assert not long


def test_nothing_is_left_open() -> None:
    found = [
        f"{name}:{number}"
        for name, text in sources(".py", ".c", ".h", ".sql")
        for number, line in enumerate(text.splitlines(), 1)
        if OPEN_ENDS.search(line)
    ]
    assert not found


def test_no_registry_address_is_committed() -> None:
    checked = sources(".toml", ".lock", ".txt", ".cfg", ".md", "") + [
        (str(p.relative_to(ROOT)), p.read_text()) for p in tracked() if p.name == "run"
    ]
    assert not [name for name, text in checked if REGISTRY.search(text)]


def test_lock_file_is_names_and_versions() -> None:
    lines = (ROOT / "requirements.lock").read_text().split("\n")
    assert not [line for line in lines if line and not re.fullmatch(r"[a-z0-9._-]+==[\w.]+", line)]


def test_every_service_has_a_readme() -> None:
    packages = {path.parent for path in (ROOT / "src/meridian").glob("*/core.py")}
    packages |= {ROOT / "src/meridian/instance", ROOT / "src/meridian/embedded"}
    assert not [str(path) for path in packages if not (path / "README.md").exists()]


def test_links_between_documents_lead_somewhere() -> None:
    broken = []
    for name, text in sources(".md"):
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
            if not ((ROOT / name).parent / target).exists():
                broken.append(f"{name}: {target}")
    assert not broken


NAMED = re.compile(r"`(?:[\w./-]*/)?(\w[\w-]*\.(?:py|c|h|md|sql|sh|pml))\b")
HISTORY = re.compile(r"docs/(rfcs/|bugs\.md)")
"""What these say was so on their day."""


def test_documents_name_files_that_exist() -> None:
    names = {path.name for path in tracked()}
    gone = [
        f"{name}: {found}"
        for name, text in sources(".md")
        if not HISTORY.match(name)
        for found in NAMED.findall(text)
        if found not in names
    ]
    assert not gone
