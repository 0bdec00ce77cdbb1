"""How large the house is, and how its rooms lean on each other: `python experiments/benchmarks/house.py`.

Prints, for the tree that this file is in: lines of the package, entries of its root, modules per room, the longest
chain of imports between rooms (floors) and between modules, cycles of modules, imports from a lower room to a higher
one, imports in both directions between two rooms, and the words of README.md and docs/.
"""

import ast
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "gan_jax"
ORDER = (  # from the bottom; a room may import from itself and from those before it
    ("utils",),
    ("parallel",),
    ("objectives", "penalties"),
    ("networks",),
    ("data",),
    ("step",),
    ("evaluation",),
    ("config",),
    ("runs",),
    ("training",),
    ("cli",),
    ("theory",),
    ("analysis",),
    ("sweep",),
    ("main", "compare"),
    ("__main__",),
)
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}


def modules() -> dict[str, Path]:
    """The package's modules by dotted name; a package by its __init__."""
    paths = sorted((ROOT / PACKAGE).rglob("*.py"))
    dotted = (path.relative_to(ROOT).with_suffix("").parts for path in paths)
    return {
        ".".join(parts[:-1] if parts[-1] == "__init__" else parts): path
        for parts, path in zip(dotted, paths, strict=True)
    }


def imports(paths: dict[str, Path]) -> dict[str, set[str]]:
    """The modules that each module imports, wherever in its file it does so."""
    arrows = {}
    for name, path in paths.items():
        targets = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                whole = {f"{node.module}.{alias.name}" for alias in node.names}
                targets |= {target if target in paths else node.module for target in whole}
        arrows[name] = {target for target in targets if target in paths and target not in (name, PACKAGE)}
    return arrows


def room(name: str) -> str:
    return name.split(".")[1] if "." in name else name


def cycles(arrows: dict[str, set[str]]) -> list[set[str]]:
    """Sets of several modules each of which reaches all others of its set (Tarjan's strongly connected components)."""
    index, lowest, stack, components = {}, {}, [], []

    def visit(node):
        index[node] = lowest[node] = len(index)
        stack.append(node)
        for target in arrows[node]:
            if target not in index:
                visit(target)
            if target in stack:
                lowest[node] = min(lowest[node], lowest[target])
        if lowest[node] == index[node]:
            component = set(stack[stack.index(node) :])
            del stack[stack.index(node) :]
            components.append(component)

    for node in arrows:
        if node not in index:
            visit(node)
    return [component for component in components if len(component) > 1]


def longest_chain(arrows: dict[str, set[str]]) -> list[str]:
    """The longest chain of modules, from the top; no module twice, arrows back into a chain left out."""
    chains = {}

    def chain(node, above):
        if node not in chains:
            below = [chain(target, above | {node}) for target in sorted(arrows[node]) if target not in above]
            chains[node] = [node, *max(below, key=len, default=[])]
        return chains[node]

    return max((chain(node, {node}) for node in sorted(arrows)), key=len)


def words(paths) -> int:
    return sum(len(re.findall(r"\S+", path.read_text())) for path in paths)


def main() -> None:
    paths = modules()
    arrows = imports(paths)
    lines = {name: len(path.read_text().splitlines()) for name, path in paths.items()}
    folders = defaultdict(list)
    for path in paths.values():
        folders[path.parent.relative_to(ROOT)].append(path.name)
    root = sorted({path.relative_to(ROOT / PACKAGE).parts[0] for path in paths.values()})
    print(f"lines of the package: {sum(lines.values())}, in {len(paths)} files")
    print(f"entries of its root: {len(root)}: {' '.join(root)}")
    print("files of a room: " + ", ".join(f"{folder} {len(names)}" for folder, names in sorted(folders.items())))
    rooms = defaultdict(set)
    for name in paths:
        rooms[room(name)] |= {room(target) for target in arrows[name]} - {room(name)}
    for what, chain in (("floors", longest_chain(rooms)), ("longest chain of modules", longest_chain(arrows))):
        print(f"{what}: {len(chain)}: {' > '.join(name.removeprefix(f'{PACKAGE}.') for name in chain)}")
    circles = cycles(arrows)
    print(f"cycles of modules: {len(circles)}", *(f"  {' '.join(sorted(circle))}" for circle in circles), sep="\n")
    pairs = sorted((name, target) for name, targets in arrows.items() for target in targets)
    upwards = [(a, b) for a, b in pairs if LEVEL.get(room(a), -1) < LEVEL.get(room(b), -1)]
    print(f"imports upwards: {len(upwards)}", *(f"  {a} -> {b}" for a, b in upwards), sep="\n")
    between = {(room(a), room(b)) for a, b in pairs if room(a) != room(b)}
    both = sorted((a, b) for a, b in between if a < b and (b, a) in between)
    print(f"rooms that import each other: {len(both)}", *(f"  {a} <-> {b}" for a, b in both), sep="\n")
    unknown = sorted({room(name) for name in paths} - set(LEVEL) - {PACKAGE})
    if unknown:
        print(f"of no known floor: {' '.join(unknown)}")
    docs = sorted((ROOT / "docs").glob("*.md"))
    print(f"words: README.md {words([ROOT / 'README.md'])}, docs {words(docs)} in {len(docs)} pages")


if __name__ == "__main__":
    main()
