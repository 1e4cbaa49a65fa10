"""The package is laid out as docs/design.md says: the table there is what is enforced here."""

import ast
import functools
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "lvis_tde"
MAX_LINES = 300

# Imports of the package inside functions, and why each is there.
LATE = {
    ("data.generation.target", "data.long_tailed"): "generation needs no Detectron2",
    ("evaluation", "evaluation.lvis_evaluator"): "metrics of a result file need no Detectron2",
    ("evaluation", "evaluation.classification_evaluator"): "likewise",
    ("evaluation.lvis_evaluator", "evaluation.confusion"): "only for the report",
    ("evaluation.lvis_evaluator", "evaluation.report.writer"): "only a report needs Matplotlib",
    ("evaluation.classification_evaluator", "evaluation.report.top1"): "likewise",
}


def _name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {_name(path): path for path in sorted((ROOT / PACKAGE).rglob("*.py"))}


def _short(module):
    """The name within the package; the package itself keeps its own."""
    return module[len(PACKAGE) + 1 :] or module


def _type_checking(tree):
    """Nodes that only a type checker sees."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            yield from (inner for part in node.body for inner in ast.walk(part))


@functools.cache
def imports(module):
    """``(imported module, whether inside a function)`` of every import, absolute names."""
    path = FILES[module]
    tree = ast.parse(path.read_text("utf-8"))
    unseen = set(_type_checking(tree))
    functions = (n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.Lambda)))
    late = {inner for function in functions for inner in ast.walk(function)}
    found = []
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if node in unseen:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [base])])
            inner = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if name in FILES else base for name in inner]
        else:
            continue
        found += [(name, node in late) for name in names]
    return found


def arrows(module):
    """Short names of the package's modules that ``module`` imports, and whether late."""
    for name, late in imports(module):
        if name.split(".")[0] == PACKAGE:
            yield _short(name), late


def documented():
    """``{room: rooms and modules it may import}`` from the table of docs/design.md."""
    text = (ROOT / "docs" / "design.md").read_text("utf-8")
    section = text.split("## Arrows")[1].split("\n## ")[0]
    table = {}
    for line in section.splitlines():
        cells = [re.findall(r"`([^`]+)`", cell) for cell in line.split("|")[1:-1]]
        if len(cells) == 2:
            for room in cells[0]:
                table[room.replace(f"{PACKAGE}/__init__.py", PACKAGE)] = cells[1]
    return table


TABLE = documented()


def _within(module, room):
    return module == room or module.startswith(room + ".")


def _room(module):
    rooms = [room for room in TABLE if _within(module, room)]
    return max(rooms, key=len, default=None)


def test_every_module_has_a_room_and_every_room_is_there():
    assert [m for m in map(_short, FILES) if _room(m) is None] == []
    assert [room for room in TABLE if not any(_within(_short(m), room) for m in FILES)] == []
    named = {target for targets in TABLE.values() for target in targets}
    assert named <= {*map(_short, FILES)}


def test_arrows_are_those_of_the_table():
    wrong = [
        f"{_short(module)} -> {target}"
        for module in FILES
        for target, _ in arrows(module)
        if _room(target) != _room(_short(module))
        and not any(_within(target, allowed) for allowed in TABLE[_room(_short(module))])
    ]
    assert wrong == [], "see docs/design.md, Arrows"


def test_imports_of_the_package_inside_functions_have_a_reason():
    late = [(_short(module), t) for module in FILES for t, late in arrows(module) if late]
    assert [pair for pair in late if pair not in LATE] == []


def test_reasons_are_for_imports_that_exist():
    known = {(_short(m), t) for m in FILES for t, late in arrows(m) if late}
    assert LATE.keys() - known == set()


def test_no_circle_of_modules():
    graph = {_short(m): {target for target, _ in arrows(m)} for m in FILES}
    while True:
        leaves = {module for module, targets in graph.items() if not targets & graph.keys()}
        if not leaves:
            break
        graph = {module: targets for module, targets in graph.items() if module not in leaves}
    assert graph == {}, "these modules import each other, or modules that do"


def test_layers_and_posthoc_need_torch_alone():
    for module in FILES:
        if _room(_short(module)) in ("layers", "posthoc"):
            others = {name.split(".")[0] for name, _ in imports(module)}
            standard = getattr(sys, "stdlib_module_names", others)  # Python 3.10
            assert others - standard - {PACKAGE} <= {"torch"}, module


def test_nothing_installed_imports_what_is_not():
    for module in FILES:
        roots = {name.split(".")[0] for name, _ in imports(module)}
        assert not roots & {"benchmarks", "tests", "tools"}, module


def test_long_files_say_why():
    silent = []
    for module, path in FILES.items():
        text = path.read_text("utf-8")
        docstring = ast.get_docstring(ast.parse(text)) or ""
        if len(text.splitlines()) > MAX_LINES and f"{MAX_LINES} lines" not in docstring:
            silent.append(module)
    assert silent == [], "split it, or say why not in its docstring"
