"""Measures what the plan of the house promises, and prints it: `python -m tests.house_figures`."""

from __future__ import annotations

import ast
import compileall
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

__all__ = [
    "any_share",
    "files_of_a_submit",
    "generated_lines",
    "import_cost",
    "longest_import_chain",
    "main",
    "written_lines",
]

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "llm_cost_ops"
GENERATED = PACKAGE / "_gen"

# User CPU seconds of an interpreter that only starts, of httpx, and of our client, the least of several runs.
_COST = """
import resource, subprocess, sys
def cost(code):
    best = 9.0
    for _ in range(7):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return best
start = cost("pass")
print((cost("from llm_cost_ops import CostOpsClient") - start) / (cost("import httpx") - start))
"""


def _sources(*, generated: bool) -> Iterator[Path]:
    for path in sorted(PACKAGE.rglob("*.py")):
        if (GENERATED in path.parents) == generated:
            yield path


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def written_lines() -> int:
    """Lines of the hand-written package."""
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in _sources(generated=False))


def generated_lines() -> int:
    """Lines of the generated package."""
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in _sources(generated=True))


def any_share() -> float:
    """The share of hand-written functions with Any in their signature."""
    total = loose = 0
    for path in _sources(generated=False):
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = node.args
                given = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
                given += [extra for extra in (arguments.vararg, arguments.kwarg) if extra is not None]
                notes = [*(argument.annotation for argument in given), node.returns]
                total += 1
                loose += any(
                    isinstance(part, ast.Name) and part.id == "Any"
                    for note in notes
                    if note is not None
                    for part in ast.walk(note)
                )
    return loose / total


def _module(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def _graph() -> dict[str, set[str]]:
    """Which module imports which, imports inside functions included; those for type checkers are not."""
    paths = [*_sources(generated=False), *_sources(generated=True)]
    known = {_module(path) for path in paths}
    graph: dict[str, set[str]] = defaultdict(set)
    for path in paths:
        tree = _tree(path)
        checked = {
            inner
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node not in checked and node.module in known:
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    graph[_module(path)].add(inner if inner in known else str(node.module))
    return graph


def longest_import_chain() -> list[str]:
    """The longest chain of modules of which each imports the next."""
    graph = _graph()
    best: dict[str, list[str]] = {}
    open_now: set[str] = set()

    def chain(module: str) -> list[str]:
        if module not in best:
            open_now.add(module)
            below = (chain(other) for other in graph[module] if other not in open_now)
            best[module] = [module, *max(below, key=len, default=[])]
            open_now.discard(module)
        return best[module]

    return max((chain(module) for module in list(graph)), key=len)


def files_of_a_submit(base_url: str) -> list[str]:
    """The files of the package that a warm submit on an embedded engine passes through, in order."""
    from llm_cost_ops import CostOpsClient

    seen: dict[str, None] = {}

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(str(PACKAGE)):
            seen.setdefault(str(Path(frame.f_code.co_filename).relative_to(ROOT)))

    with CostOpsClient(base_url=base_url) as client:
        for _ in range(3):
            seen.clear()
            sys.setprofile(note)
            try:
                client.usage.submit(
                    organization_id="o", provider="openai", model_id="gpt-4o", input_tokens=1, output_tokens=1
                )
            finally:
                sys.setprofile(None)
    return list(seen)


def import_cost() -> float:
    """What `from llm_cost_ops import CostOpsClient` takes, in parts of what `import httpx` takes.

    Both are compiled before, as pip does for what it installs.
    """
    compileall.compile_dir(str(PACKAGE), quiet=2)
    done = subprocess.run([sys.executable, "-c", _COST], cwd=ROOT, capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    """Print every figure."""
    chain = longest_import_chain()
    with TemporaryDirectory() as folder:
        for place, url in ("in memory", "sqlite://"), ("on a file", f"sqlite:///{folder}/costs.db"):
            files = files_of_a_submit(url)
            print(f"files that a warm submit {place} passes through {len(files):4}")
            print("   " + " > ".join(name.removeprefix("llm_cost_ops/") for name in files))
    print(f"longest chain of imports                          {len(chain)}")
    print("   " + " > ".join(name.removeprefix("llm_cost_ops.") for name in chain))
    print(f"signatures with Any                               {any_share():.1%}")
    print(f"hand-written lines                                {written_lines():,}")
    print(f"generated lines                                   {generated_lines():,}")
    print(f"CPU of `from llm_cost_ops import CostOpsClient`   {import_cost():.2f} of `import httpx`")


if __name__ == "__main__":
    main()
