"""Imports run one way: moco <- mgd_ssl <- linear_eval <- launchers."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ["moco", "mgd_ssl", "linear_eval", "launchers"]
ALGORITHM = ["margin", "matching", "reducers", "loss", "mgd", "taps"]
FILES = [path for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.py"))]


def imported(path: Path, nodes: list[ast.AST] | None = None) -> set[str]:
    """Dotted names of the modules a file imports, with the names taken from them (they may be modules)."""
    found: set[str] = set()
    for node in nodes or list(ast.walk(ast.parse(path.read_text()))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module is not None
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def packages(modules: set[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_no_layer_imports_a_later_one(path: Path) -> None:
    layer = LAYERS.index(path.relative_to(ROOT).parts[0])
    assert not packages(imported(path)) & set(LAYERS[layer + 1 :])


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_nothing_imports_the_command_line(path: Path) -> None:
    assert "mgd_ssl.cli" not in imported(path)


@pytest.mark.parametrize("name", ALGORITHM)
def test_algorithm_files_know_tensors_and_nothing_of_training(name: str) -> None:
    modules = imported(ROOT / "mgd_ssl" / f"{name}.py")
    assert not packages(modules) & {"torchvision", "PIL", "pydantic", "tyro", "rich", "faiss"}
    ours = {module.split(".")[1] for module in modules if module.startswith("mgd_ssl.")}
    assert ours <= {*ALGORITHM, "errors"}


def test_the_command_line_starts_without_heavy_imports() -> None:
    path = ROOT / "mgd_ssl" / "cli.py"
    top: list[ast.AST] = [
        node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    modules = imported(path, top)
    assert packages(modules) <= {"sys", "collections", "mgd_ssl"}
    ours = {".".join(module.split(".")[:2]) for module in modules if module.startswith("mgd_ssl.")}
    assert ours == {"mgd_ssl.commands", "mgd_ssl.errors"}
    assert packages(imported(ROOT / "mgd_ssl" / "commands.py")) == {
        "collections", "importlib", "pathlib", "typing", "mgd_ssl"
    }  # fmt: skip
