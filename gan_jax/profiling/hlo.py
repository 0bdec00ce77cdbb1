"""What a compiled program consists of, read off its text (`Compiled.as_text()`): operations, their places and bytes."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

SLICES = ("dynamic-slice", "slice", "gather")  # of their first operand they read only what they return
_CALLERS = ("while", "call", "conditional")
# No work of their own: names for what is there, or wrappers of what they call.
FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", *_CALLERS)

# The kind of an operation is the first of these that it, or something fused into it, is; else elementwise.
KINDS = {
    "convolution": ("convolution",),
    "matrix product": ("dot",),
    "library call": ("custom-call",),
    "collective": (
        "all-reduce",
        "all-gather",
        "reduce-scatter",
        "all-to-all",
        "ragged-all-to-all",
        "collective-permute",
        "collective-broadcast",
    ),
    "reduction": ("reduce", "reduce-window"),
    "sort": ("sort",),
    "indexing": ("gather", "scatter", "dynamic-slice", "dynamic-update-slice"),
    "loop": ("while",),
}
_PURE_COPIES = {"copy", "transpose", "bitcast", "reshape", "parameter", "tuple", "broadcast", "constant", "concatenate"}

_SHAPE = re.compile(r"([a-z]+)(\d*)[a-z0-9]*\[([\d,]*)\]")
_CALLED = re.compile(r"\b(calls|condition|body|to_apply|branch_computations|called_computations)=(\{[^}]*\}|%[\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_PLACE = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_NAME = re.compile(r"%([\w.\-]+)")


class Instruction(NamedTuple):
    """One line of a program."""

    name: str
    shape: str
    opcode: str
    operands: list[str]
    attributes: str
    is_root: bool  # of its computation

    @property
    def called(self) -> list[str]:
        """The computations that it runs."""
        return [name for _, names in _CALLED.findall(self.attributes) for name in _NAME.findall(names)]

    @property
    def place(self) -> str:
        """Where in the source it comes from, as jax's name stack: `jit(train_steps)/jvp(Generator)/Dense_0/...`."""
        found = _PLACE.search(self.attributes)
        return found[1] if found else ""


class Collective(NamedTuple):
    """One operation in which devices exchange arrays."""

    kind: str  # one of KINDS["collective"]
    bytes: int  # of one device's operands, each time
    place: str  # see Instruction.place
    count: int  # how often it runs


class Program(NamedTuple):
    """The computations of a program, by name."""

    entry: str
    computations: dict[str, list[Instruction]]


def parse(text: str) -> Program:
    """The program that `Compiled.as_text()` shows."""
    entry, computations, current = "", {}, []
    for line in text.splitlines():
        if line.endswith("{") and "(" in line and line[:1] in "%E":
            name = _NAME.search(line)[1]
            computations[name] = current = []
            entry = name if line.startswith("ENTRY") else entry
        elif line.startswith("  ") and " = " in line:
            current.append(_instruction(line))
    return Program(entry, computations)


def _instruction(line: str) -> Instruction:
    left, right = line.split(" = ", 1)
    end = _closing(right, 0) if right.startswith("(") else right.index(" ")
    shape, right = right[:end], right[end:].lstrip()
    start = right.index("(")
    end = _closing(right, start)
    name, operands = _NAME.search(left)[1], _NAME.findall(right[start:end])
    return Instruction(name, shape, right[:start], operands, right[end:], "ROOT" in left)


def _closing(text: str, start: int) -> int:
    """Behind the bracket that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if not depth:
            return i + 1
    raise ValueError(f"a bracket is not closed: {text[:80]}")


def bytes_of(shape: str) -> int:
    """Bytes of the arrays in a shape such as `(f32[8,2]{1,0}, pred[])`."""
    sizes = (
        math.prod(map(int, filter(None, dimensions.split(",")))) * (int(bits or 8) if kind != "token" else 0)
        for kind, bits, dimensions in _SHAPE.findall(shape)
    )
    return sum(-(-bits // 8) for bits in sizes)


def kind(program: Program, instruction: Instruction) -> str:
    """What an operation is, in a word or two: the costliest kind of thing in it."""
    opcodes = _opcodes(program, instruction)
    for name, members in KINDS.items():
        if any(opcode.removesuffix("-start").removesuffix("-done") in members for opcode in opcodes):
            return name
    return "copy" if opcodes - {"fusion", "call"} <= _PURE_COPIES else "elementwise"


def _opcodes(program: Program, instruction: Instruction) -> set[str]:
    if instruction.opcode not in ("fusion", "call"):
        return {instruction.opcode}
    inside = (inner for name in instruction.called for inner in program.computations.get(name, ()))
    return {instruction.opcode}.union(*(_opcodes(program, inner) for inner in inside))


def collectives(program: Program) -> list[Collective]:
    """The collectives of one device, loops as often as they run, in the order of the program's text.

    One that is combined of several has the bytes of all, a start and its done are one. As in `bytes_accessed`, a loop
    of unknown length counts once, and every branch of a conditional counts.
    """
    return list(_collectives_of(program, program.entry, 1))


def _collectives_of(program: Program, name: str, times: int) -> Iterator[Collective]:
    computation = program.computations.get(name, [])
    shapes = {each.name: each.shape for each in computation}
    for each in computation:
        opcode = each.opcode.removesuffix("-start")
        if opcode in KINDS["collective"]:
            size = sum(bytes_of(shapes[operand]) for operand in each.operands)
            yield Collective(opcode, size, each.place, times)
        elif opcode in (*_CALLERS, "fusion", "async"):
            for inner in each.called:
                yield from _collectives_of(program, inner, times * _trips(each))


def _trips(each: Instruction) -> int:
    """How often a loop runs; 1 where that is not known, and of what is no loop."""
    found = _TRIPS.search(each.attributes)
    return int(found[1]) if found else 1


def bytes_accessed(program: Program, loops: bool = True) -> int:
    """Bytes that the operations read and write on one device, each loop as often as it runs (or once, not `loops`).

    Every operation reads its operands and writes its result once, whatever stays in a cache; what is fused reads and
    writes nothing in between, and a slice only what it takes. A loop of unknown length counts once.
    """
    return _bytes_of_computation(program, program.entry, loops)


def _bytes_of_computation(program: Program, name: str, loops: bool) -> int:
    computation = program.computations.get(name, [])
    shapes = {each.name: each.shape for each in computation}
    total = 0
    for each in computation:
        if each.opcode in _CALLERS:
            trips = _trips(each) if loops else 1
            total += trips * sum(_bytes_of_computation(program, inner, loops) for inner in each.called)
        elif each.opcode not in FREE and not each.opcode.endswith("-done"):
            total += _bytes_of_operation(program, each, shapes)
    return total


def _bytes_of_operation(program: Program, each: Instruction, shapes: dict[str, str]) -> int:
    if each.opcode == "fusion":
        return _bytes_of_fusion(program.computations[each.called[0]], each, shapes)
    sizes = [bytes_of(shapes.get(name, "")) for name in each.operands]
    if each.opcode in SLICES:
        return 2 * bytes_of(each.shape) + sum(sizes[1:])
    if each.opcode == "dynamic-update-slice":
        return 2 * sizes[1] + sum(sizes[2:])
    return bytes_of(each.shape) + sum(sizes)


def _bytes_of_fusion(inside: list[Instruction], each: Instruction, shapes: dict[str, str]) -> int:
    by_name = {inner.name: inner for inner in inside}
    parameters = [inner for inner in inside if inner.opcode == "parameter"]
    read = sum(_bytes_read(inside, parameter) for parameter in parameters)
    root = next(inner for inner in inside if inner.is_root)
    results = [by_name[name] for name in root.operands] if root.opcode == "tuple" else [root]
    return read + sum(
        bytes_of(by_name[result.operands[1]].shape if result.opcode == "dynamic-update-slice" else result.shape)
        for result in results
    )


def _bytes_read(inside: list[Instruction], parameter: Instruction) -> int:
    """Of a fusion's parameter: all of it, or the slices where it is only sliced or updated in place."""
    users = [each for each in inside if parameter.name in each.operands]
    if all(each.opcode in SLICES and each.operands.index(parameter.name) == 0 for each in users):
        return min(bytes_of(parameter.shape), sum(bytes_of(each.shape) for each in users))
    if all(each.opcode == "dynamic-update-slice" and each.operands[0] == parameter.name for each in users):
        return 0
    return bytes_of(parameter.shape)
