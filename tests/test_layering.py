"""The shape of the code: cores are pure, and nothing imports the command line."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "meridian"
MODULES = sorted(SOURCE.rglob("*.py"))
CORES = [path for path in MODULES if path.name == "core.py"]
PURE_PACKAGES = {"wire", "limits", "errors"}
CLOCK_TYPES = {"meridian.clock.tau"}
JOURNAL_RECORDS = {"meridian.journal.core", "meridian.journal.record"}
"""What travels in a journal is the language between adjudicator, journal and crossbar."""
FORBIDDEN_IN_CORES = {
    "asyncio", "datetime", "multiprocessing", "os", "pathlib", "random", "secrets", "select",
    "signal", "socket", "subprocess", "tempfile", "threading", "time", "uuid", "uvloop", "apsw",
}  # fmt: skip


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Every module that `path` imports, as absolute names."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            found.add(module)
            if module.startswith("meridian"):
                names = [f"{module}.{alias.name}" for alias in node.names]
                found |= {name for name in names if is_module(name)}
    return found


def is_module(name: str) -> bool:
    path = SOURCE.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or path.is_dir()


def pure_closure(path: Path) -> set[Path]:
    """A core and the modules of its own package that it pulls in."""
    package = module_name(path.parent / "__init__.py")
    seen, frontier = set(), {path}
    while frontier:
        current = frontier.pop()
        seen.add(current)
        for name in imports(current):
            if name.startswith(package + "."):
                target = SOURCE.parent.joinpath(*name.split(".")).with_suffix(".py")
                if target.exists() and target not in seen:
                    frontier.add(target)
    return seen


def test_there_are_cores() -> None:
    assert {path.parent.name for path in CORES} >= {"adjudicator", "journal", "crossbar"}


@pytest.mark.parametrize("core", CORES, ids=lambda path: path.parent.name)
def test_cores_are_pure(core: Path) -> None:
    own = module_name(core.parent / "__init__.py")
    for path in pure_closure(core):
        for name in imports(path):
            top = name.split(".")[0]
            assert top not in FORBIDDEN_IN_CORES, f"{module_name(path)} imports {name}"
            if top != "meridian" or name == "meridian":
                continue
            allowed = (
                name == own or name.startswith(own + ".")
                or name.split(".")[1] in PURE_PACKAGES
                or name in CLOCK_TYPES | JOURNAL_RECORDS
                or name in {"meridian.clock", "meridian.journal"}
                or name.rpartition(".")[0] in CLOCK_TYPES | JOURNAL_RECORDS
            )  # fmt: skip
            assert allowed, f"{module_name(path)} imports {name}"


@pytest.mark.parametrize("core", CORES, ids=lambda path: path.parent.name)
def test_cores_do_not_iterate_over_sets(core: Path) -> None:
    """The order of a set is not the same in two runs."""
    for path in pure_closure(core):
        for node in ast.walk(ast.parse(path.read_text())):
            loops = [node.iter] if isinstance(node, (ast.For, ast.comprehension)) else []
            for loop in loops:
                is_set = isinstance(loop, (ast.Set, ast.SetComp)) or (
                    isinstance(loop, ast.Call) and isinstance(loop.func, ast.Name)
                    and loop.func.id in {"set", "frozenset"}
                )  # fmt: skip
                assert not is_set, f"{module_name(path)}:{loop.lineno} iterates over a set"


def test_nothing_imports_the_cli() -> None:
    for path in MODULES:
        name = module_name(path)
        if name.startswith("meridian.cli") or name == "meridian.__main__":
            continue
        bad = {i for i in imports(path) if i == "meridian.cli" or i.startswith("meridian.cli.")}
        assert not bad, f"{name} imports {bad}"


def test_services_do_not_import_the_embedded_cluster() -> None:
    """The pieces know nothing of the process that starts them."""
    users = {"cli", "bench", "embedded", "__main__"}
    for path in MODULES:
        parts = module_name(path).split(".")
        if len(parts) > 1 and parts[1] not in users:
            above = ("meridian.embedded", "meridian.bench")
            bad = {name for name in imports(path) if name.startswith(above)}
            assert not bad, f"{'.'.join(parts)} imports {bad}"
