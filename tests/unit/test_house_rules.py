"""What reviewers would otherwise have to look for: sizes, names, imports, stray references."""

from __future__ import annotations

import ast
import builtins
import importlib
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import msgspec
import pytest

from tests.house_figures import any_share, files_of_a_submit, generated_lines, longest_import_chain

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "llm_cost_ops"
GENERATED = PACKAGE / "_gen"
SKIPPED = {"build", "dist", "htmlcov", "__pycache__"}

FORBIDDEN_NAMES = {"base", "common", "helper", "helpers", "manager", "misc", "util", "utils"}
LAZY = {
    "asyncio",
    "granian",
    "grpc",
    "grpclib",
    "h11",
    "h2",
    "http.server",
    "httpcore",
    "httpx",
    "jinja2",
    "opentelemetry",
    "prometheus_client",
    "rich",
    "sqlite3",
    "ssl",
    "uvicorn",
    "zoneinfo",
}


@cache
def _files() -> tuple[Path, ...]:
    """Give every file of the project that people write, and the generated ones."""
    found = []
    for path in ROOT.rglob("*"):
        parts = path.relative_to(ROOT).parts
        hidden = any(part.startswith(".") for part in parts) and parts[0] != ".ci"
        if path.is_file() and not hidden and not SKIPPED.intersection(parts):
            found.append(path)
    return tuple(sorted(found))


@cache
def _written() -> tuple[Path, ...]:
    return tuple(path for path in _files() if path.suffix == ".py" and GENERATED not in path.parents)


def _in_package() -> list[Path]:
    return [path for path in _written() if PACKAGE in path.parents]


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _functions(path: Path) -> Iterator[tuple[str, int]]:
    """Give each function and its length without the docstring."""
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            size = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node) is not None:
                first = node.body[0]
                size -= (first.end_lineno or first.lineno) - first.lineno + 1
            yield node.name, size


def _comments(path: Path) -> Iterator[str]:
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


def _dunder_all(path: Path) -> list[str] | None:
    for node in _tree(path).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            value = getattr(node, "value", None)
            assert isinstance(value, ast.List), f"{_name(path)}: __all__ is no plain list"
            return [ast.literal_eval(item) for item in value.elts]
    return None


def _rank(name: str) -> tuple[int, str]:
    """Order names as ruff does: constants, then classes, then the rest."""
    if name.isupper():
        return 0, name
    return (1, name) if name[:1].isupper() else (2, name)


def test_files_have_at_most_600_lines() -> None:
    sizes = {_name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in _written()}
    assert {name: size for name, size in sizes.items() if size > 600} == {}


def _docstring_lines(path: Path) -> set[int]:
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    with_docstring = [
        node for node in ast.walk(_tree(path)) if isinstance(node, kinds) and ast.get_docstring(node)
    ]
    return {
        line
        for node in with_docstring
        for line in range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
    }


def test_the_generator_has_at_most_1950_lines_of_code() -> None:
    """With the OpenAPI document, which is 320. Docstrings and blank lines would make it no simpler."""
    size = 0
    for path in (path for path in _written() if ROOT / "tools" / "codegen" in path.parents):
        lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        told = _docstring_lines(path)
        size += sum(bool(text.strip()) and number not in told for number, text in lines)
    assert size <= 1950


def test_functions_have_at_most_60_lines() -> None:
    long = [(_name(path), *item) for path in _written() for item in _functions(path) if item[1] > 60]
    assert long == []


def test_nine_of_ten_functions_have_at_most_25_lines() -> None:
    sizes = [size for path in _in_package() for _, size in _functions(path)]
    assert sum(size > 25 for size in sizes) <= len(sizes) / 10


def test_modules_say_what_they_are() -> None:
    vague = [_name(path) for path in _written() if FORBIDDEN_NAMES.intersection(path.stem.split("_"))]
    assert vague == []


# Words of a dialect of our own, and the word that readers know: transport, connection, listener, MAX_*.
BANNED_WORDS = {
    "leaf": "transport",
    "lane": "connection",
    "door": "listener",
    "told": "sent, known, answered: whichever it is",
    "glance": "read, peek",
    "patience": "timeout",
    "keyed": "with_key",
    "respell": "decode, encode",
    "terms_of": "series",
    "lay_out": "encode",
    "content_of": "canonical_json",
}
BANNED_IN_CONSTANTS = {"MOST", "LONGEST", "LARGEST"}


def _defined_names(path: Path) -> Iterator[str]:
    """Give the identifiers that a file defines: functions, classes, arguments, variables, attributes."""
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def _banned(name: str) -> str | None:
    words = [word.lower() for word in re.split(r"_+|(?<=[a-z0-9])(?=[A-Z])", name)]
    joined = f"_{'_'.join(words)}_"
    found = next((word for word in BANNED_WORDS if f"_{word}_" in joined), None)
    if found is not None:
        return f"{name}: say {BANNED_WORDS[found]}"
    in_constant = name.isupper() and BANNED_IN_CONSTANTS.intersection(name.split("_"))
    return f"{name}: say MAX or MIN" if in_constant else None


@pytest.mark.parametrize(
    "name", ["HttpLeaf", "_told", "laneOf", "terms_of", "_MOST_LINES", "LONGEST", "PATIENCE", "keyed"]
)
def test_words_of_a_dialect_are_seen(name: str) -> None:
    assert _banned(name) is not None


@pytest.mark.parametrize("name", ["leaflet", "planet", "most", "content_offset", "doors_open", "MAX_LINES"])
def test_whole_words_alone_are_banned(name: str) -> None:
    assert _banned(name) is None


def test_names_are_the_words_of_the_field() -> None:
    looked_at = [path for path in _written() if path.relative_to(ROOT).parts[0] in ("llm_cost_ops", "tools")]
    found = {_name(path): {_banned(name) for name in _defined_names(path)} - {None} for path in looked_at}
    assert {name: sorted(map(str, words)) for name, words in found.items() if words} == {}


def test_type_ignores_are_few_and_give_code_and_reason() -> None:
    # Few files have it at all, and to find the comments of a file takes long.
    having = [path for path in _written() if "type: ignore" in path.read_text(encoding="utf-8")]
    marked = [(_name(path), text) for path in having for text in _comments(path) if "type: ignore" in text]
    assert len(marked) <= 10, marked
    form = re.compile(r"# type: ignore\[[a-z-]+(, ?[a-z-]+)*\]  ?# \S.*")
    assert [item for item in marked if not form.fullmatch(item[1])] == []


def test_every_module_lists_what_it_offers_in_order() -> None:
    for path in _in_package():
        names = _dunder_all(path)
        if names is None:
            empty = path.name == "__init__.py" and len(_tree(path).body) <= 2
            assert empty or path.name == "__main__.py", f"{_name(path)} has no __all__"
        else:
            assert names == sorted(set(names), key=_rank), f"{_name(path)}: __all__ is not sorted"


def test_the_tree_names_no_machine_of_ours() -> None:
    # Put together here, so that this file does not match itself.
    words = ["/" + "work/", "/" + "opt/pypi", "pythonhosted" + ".org", "pypi" + ".org", "npmjs" + ".org"]
    pattern = re.compile("|".join(map(re.escape, words)).encode())
    assert [_name(path) for path in _files() if pattern.search(path.read_bytes())] == []


def test_imports_go_downward_only() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _loaded(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.fixture(scope="module")
def bare() -> set[str]:
    """What an interpreter of this environment loads by itself."""
    return _loaded("")


def test_importing_the_package_loads_nothing_that_not_everybody_uses(bare: set[str]) -> None:
    loaded = _loaded("import llm_cost_ops") - bare
    assert "llm_cost_ops" in loaded
    assert sorted(loaded & LAZY) == []
    assert sorted(name for name in loaded if name.startswith("llm_cost_ops.")) == ["llm_cost_ops.lazy"]


def test_public_names_are_lazy_sorted_and_there() -> None:
    import llm_cost_ops

    names = llm_cost_ops.__all__
    assert list(names) == sorted(set(names), key=_rank)
    assert [name for name in names if not hasattr(llm_cost_ops, name)] == []
    assert set(names) <= set(dir(llm_cost_ops))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = llm_cost_ops.no_such_name


def test_what_was_reached_of_the_house_figures_is_kept() -> None:
    """Lower them as they fall; `python -m tests.house_figures` prints the others, which take longer."""
    assert any_share() <= 0.125
    assert generated_lines() <= 14_400
    chain = longest_import_chain()
    assert len(chain) <= 14, " > ".join(chain)


@pytest.mark.parametrize(("place", "limit"), [("sqlite://", 15), ("sqlite:///{}/costs.db", 20)])
def test_the_page_on_a_submit_names_the_files_that_it_passes_through(
    place: str, limit: int, tmp_path: Path
) -> None:
    page = (ROOT / "docs" / "follow-one-submit.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/]+\.py)`", page))
    assert sorted(name for name in named if not (ROOT / "llm_cost_ops" / name).is_file()) == []
    passed = {name.removeprefix("llm_cost_ops/") for name in files_of_a_submit(place.format(tmp_path))}
    assert sorted(passed - named) == []
    assert len(passed) <= limit, passed


def test_one_place_hooks_into_forks() -> None:
    """The order of what happens around a fork is known only there; see llm_cost_ops/rpc/forks.py."""
    called = [
        _name(path)
        for path in _in_package()
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Attribute) and node.attr in ("register_at_fork", "getpid")
    ]
    # Its own process is sent the signal that the handler of before would have had.
    assert sorted(called) == ["llm_cost_ops/client/recording.py", "llm_cost_ops/rpc/forks.py"]


def _late_decoders(path: Path) -> Iterator[str]:
    """Where functions have a decoder of a struct made, or of what is not known here."""
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    functions = [node for node in ast.walk(_tree(path)) if isinstance(node, ast.FunctionDef)]
    for node in (node for function in functions for node in ast.walk(function)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        kinds = [each.value for each in node.keywords if each.arg == "type" and node.func.attr == "decode"]
        for kind in kinds + (node.args[:1] if node.func.attr == "Decoder" else []):
            # With a stand-in for what is no name of the module, such as a parameter.
            found = eval(
                ast.unparse(kind), {**dict.fromkeys(_names_in(kind), msgspec.Struct), **vars(module)}
            )
            if isinstance(found, type) and issubclass(found, msgspec.Struct):
                yield f"{_name(path)}:{node.lineno}"


def _names_in(node: ast.expr) -> set[str]:
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name) and each.id not in dir(builtins)}


def test_decoders_of_structs_are_made_once_while_modules_are_loaded() -> None:
    # Two threads that make the first one of a struct end the process; `decoder_of` has a lock.
    late = {
        where for path in _in_package() if "msgspec" in path.read_text() for where in _late_decoders(path)
    }
    assert {where.partition(":")[0] for where in late} == {"llm_cost_ops/wire/json.py"}, late


def test_the_page_on_architecture_has_a_row_for_every_room() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["id"] == "layers")
    rooms = {room.strip() for layer in layers for room in layer.split("|")}
    table = (ROOT / "docs/architecture.md").read_text(encoding="utf-8").partition("## Rooms")[2]
    named = {
        room
        for row in re.findall(r"^\| (.*?) \|", table, re.MULTILINE)
        for room in re.findall(r"`(\w+)`", row)
    }
    assert named == rooms
