"""Imports run one way: between the packages, and between the folders of mgd_ssl."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ["moco", "mgd_ssl", "linear_eval", "launchers"]  # each imports only those before it
ROOMS = [  # of mgd_ssl, folders and files: each imports only its own and those above it
    ["printable"],
    ["errors"],
    ["posix_locks"],
    ["files", "settings", "mgd"],
    ["setting_keys"],
    ["term_settings", "view_settings", "refused_words"],
    ["config", "command_line", "console"],
    ["classify_settings"],
    ["run"],
    ["networks", "training"],
    ["data", "export"],
    ["distillation", "evaluation"],
    ["tasks"],
    ["report"],
    ["demo", "bench"],
    ["doctor"],
    ["commands"],
    ["cli"],
]
HOOKS = {"_note_warning"}  # in the place of one of Python's own, which has more parameters
HEAVY = ("torch", "torchvision", "faiss", "cv2", "scipy", "matplotlib", "pandas")
TESTS = sorted((ROOT / "tests").rglob("*.py"))
FILES = [path for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """Dotted names of the modules a file imports anywhere in it, with the names taken from them."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module is not None
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def packages(modules: set[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules}


def rooms(modules: set[str]) -> set[str]:
    """The folders and files of mgd_ssl among some modules."""
    known = {room for level in ROOMS for room in level}
    return {module.split(".")[1] for module in modules if module.startswith("mgd_ssl.")} & known


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_files_and_functions_can_be_read_at_once(path: Path) -> None:
    source = path.read_text()
    assert source.count("\n") <= 300
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef) or node.name in HOOKS:
            continue
        assert node.end_lineno is not None
        assert node.end_lineno - node.lineno < 60, node.name
        given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        names = [each.arg for each in given if each.arg not in ("self", "cls")]
        assert node.name == "__init__" or len(names) <= 5, node.name


@pytest.mark.parametrize("path", TESTS, ids=relative)
def test_tests_can_be_read_at_once(path: Path) -> None:
    assert path.read_text().count("\n") <= 300


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_no_package_imports_a_later_one(path: Path) -> None:
    layer = LAYERS.index(path.relative_to(ROOT).parts[0])
    assert not packages(imported(path)) & set(LAYERS[layer + 1 :])


@pytest.mark.parametrize("path", [p for p in FILES if p.is_relative_to(ROOT / "mgd_ssl")], ids=relative)
def test_no_folder_imports_a_later_one(path: Path) -> None:
    room = path.relative_to(ROOT / "mgd_ssl").parts[0].removesuffix(".py")
    if room == "__init__":  # the public names, imported when they are asked for
        return
    (level,) = (number for number, level in enumerate(ROOMS) if room in level)
    allowed = {room for earlier in ROOMS[:level] for room in earlier} | {room}
    assert rooms(imported(path)) <= allowed


def test_every_folder_has_its_level() -> None:
    found = {path.name.removesuffix(".py") for path in (ROOT / "mgd_ssl").iterdir() if path.suffix in ("", ".py")}
    found -= {"__init__", "__pycache__", "configs"}
    assert found <= {room for level in ROOMS for room in level}


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_only_the_face_and_launchers_import_commands(path: Path) -> None:
    if not path.is_relative_to(ROOT / "mgd_ssl" / "commands") and path.name != "cli.py":
        allowed = path.is_relative_to(ROOT / "launchers")
        assert allowed or "commands" not in rooms(imported(path))
    assert "mgd_ssl.cli" not in imported(path)


@pytest.mark.parametrize("path", sorted((ROOT / "mgd_ssl" / "mgd").glob("*.py")), ids=relative)
def test_the_algorithm_knows_tensors_alone(path: Path) -> None:
    ours = {name for name in imported(path) if name.startswith("mgd_ssl.")}
    assert packages(imported(path)) <= {
        "torch", "numpy", "scipy", "mgd_ssl", "collections", "dataclasses", "functools", "math", "typing"
    }  # fmt: skip
    assert rooms(ours) <= {"mgd"}


def test_the_loop_knows_no_task() -> None:
    for path in (ROOT / "mgd_ssl" / "training").glob("*.py"):
        assert not rooms(imported(path)) & {"tasks", "networks", "data", "distillation", "evaluation"}


def test_runs_know_no_network_and_open_no_image() -> None:
    for path in (ROOT / "mgd_ssl" / "run").glob("*.py"):
        assert not packages(imported(path)) & {"PIL", "cv2", "simplejpeg"}, path


def modules_after(code: str) -> set[str]:
    """What a fresh interpreter has imported after some code."""
    code += "\nimport sys\nprint('\\n' + ' '.join(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr
    return packages(set(answer.stdout.splitlines()[-1].split()))


def called(*words: str) -> str:
    """Code that calls the command line and swallows its exit."""
    return f"from mgd_ssl.cli import main\ntry:\n    main({list(words)!r})\nexcept SystemExit:\n    pass"


COMMANDS = [
    "demo",
    "pretrain",
    "classify",
    "linear",
    "knn",
    "pack",
    "launch",
    "runs",
    "report",
    "bench",
    "bags",
    "embed",
    "export",
    "teachers",
    "detect",
]
FACES = [["--help"], ["--version"], ["nonsense"], *([name, "--help"] for name in COMMANDS)]


@pytest.mark.parametrize("words", FACES, ids=" ".join)
def test_the_face_opens_without_heavy_imports(words: list[str]) -> None:
    assert not modules_after(called(*words)) & set(HEAVY)


def test_runs_are_listed_without_heavy_imports(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    (run / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "epoch": 0.5, "loss": 1.0}\n')
    assert not modules_after(called("runs", str(tmp_path))) & set(HEAVY)
