"""docs/equations.md and the docstrings of models, losses and trainings tell the same story."""

import ast
import importlib
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROW = re.compile(r"^\| \((\d+)\) \| .+ \| `([\w.]+)` \|$", re.MULTILINE)


def documented() -> set[tuple[int, str]]:
    return {(int(number), name) for number, name in ROW.findall((ROOT / "docs/equations.md").read_text())}


def functions(body: list[ast.stmt], prefix: str):
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from functions(node.body, f"{prefix}.{node.name}")
        elif isinstance(node, ast.FunctionDef):
            yield f"{prefix}.{node.name}", ast.get_docstring(node) or ""


def in_code() -> set[tuple[int, str]]:
    found = set()
    for room in ("models", "losses", "train"):
        for path in sorted((ROOT / "codeswap" / room).glob("*.py")):
            for name, docstring in functions(ast.parse(path.read_text()).body, f"codeswap.{room}.{path.stem}"):
                if number := re.match(r"Eq\. \((\d+)\)", docstring):
                    found.add((int(number[1]), name))
    return found


def test_every_equation_of_the_paper_has_a_function():
    assert {number for number, _ in documented()} == set(range(1, 16))


def test_the_table_and_the_docstrings_agree_in_both_directions():
    assert documented() == in_code()


def test_every_name_in_the_table_can_be_imported():
    for _, name in documented():
        parts = name.split(".")
        target = importlib.import_module(".".join(parts[:3]))
        for part in parts[3:]:
            target = getattr(target, part)
        assert callable(target)
