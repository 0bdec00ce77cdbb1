"""What a compiled program consists of, read off its text (`Compiled.as_text()`): operations, places, collectives.

JAX has no other public view of these; FLOPs, bytes and memory come from `cost_analysis` and `memory_analysis`.
"""

import math
import re
from typing import NamedTuple

# Bytes that each of n devices sends, for every byte of its own operand: with rings, which are optimal in bytes.
SENT = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: n - 1,
    **dict.fromkeys(("reduce-scatter", "all-to-all", "ragged-all-to-all"), lambda n: (n - 1) / n),
    **dict.fromkeys(("collective-permute", "collective-broadcast"), lambda n: 1),
}
# The kind of an operation is the first of these that it, or something fused into it, is; else copy or elementwise.
KINDS = {
    "convolution": ("convolution",),
    "matrix product": ("dot",),
    "library call": ("custom-call",),
    "collective": tuple(SENT),
    "reduction": ("reduce", "reduce-window"),
    "sort": ("sort",),
    "indexing": ("gather", "scatter", "dynamic-slice", "dynamic-update-slice"),
    "loop": ("while",),
}
_CALLERS = {"while", "call", "conditional", "fusion", "async"}
_PURE_COPIES = {"copy", "transpose", "bitcast", "reshape", "parameter", "tuple", "broadcast", "constant", "concatenate"}

_INSTRUCTION = re.compile(r"  (?:ROOT )?%([\w.\-]+) = (.+?) ([a-z][\w\-]*)\((.*)")
_SHAPE = re.compile(r"([a-z]+)(\d*)[a-z0-9]*\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|condition|body|to_apply|(?:branch|called)_computations)=(\{[^}]*\}|%[\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_PLACE = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_NAME = re.compile(r"%([\w.\-]+)")


class Instruction(NamedTuple):
    """One line of a program."""

    name: str
    shape: str
    opcode: str
    operands: list[str]
    called: list[str]  # the computations that it runs
    place: str  # in the source, as jax's name stack: `jit(train_steps)/jvp(Generator)/Dense_0/...`; may be empty
    trips: int  # how often a loop runs; 1 where that is not known, and of what is no loop


class Collective(NamedTuple):
    """One operation in which devices exchange arrays."""

    kind: str  # one of SENT
    bytes: int  # of one device's operands, each time
    place: str  # see Instruction.place
    count: int  # how often it runs

    def sent(self, n: int) -> float:
        """Bytes that each of n devices sends, all times together."""
        return self.count * SENT[self.kind](n) * self.bytes


class Program(NamedTuple):
    """The computations of a program, by name."""

    entry: str
    computations: dict[str, list[Instruction]]


def parse(text: str) -> Program:
    """The program that `Compiled.as_text()` shows."""
    entry, computations, current = "", {}, []
    for line in text.splitlines():
        if match := _INSTRUCTION.match(line):
            name, shape, opcode, rest = match.groups()
            operands, _, attributes = rest.partition("), ")
            called = [callee for callees in _CALLED.findall(attributes) for callee in _NAME.findall(callees)]
            place, trips = (pattern.search(attributes) for pattern in (_PLACE, _TRIPS))
            known = (place[1] if place else "", int(trips[1]) if trips else 1)
            current.append(Instruction(name, shape, opcode, _NAME.findall(operands), called, *known))
        elif line.endswith("{") and "(" in line and line[:1] in "%E":
            name = _NAME.search(line)[1]
            computations[name] = current = []
            entry = name if line.startswith("ENTRY") else entry
    return Program(entry, computations)


def bytes_of(shape: str) -> int:
    """Bytes of the arrays in a shape such as `(f32[8,2]{1,0}, pred[])`."""
    sizes = (
        math.prod(map(int, filter(None, dimensions.split(",")))) * (int(bits or 8) if dtype != "token" else 0)
        for dtype, bits, dimensions in _SHAPE.findall(shape)
    )
    return sum(-(-bits // 8) for bits in sizes)


def kind(program: Program, instruction: Instruction) -> str:
    """What an operation is, in a word or two: the costliest kind of thing in it."""
    opcodes = _opcodes(program, instruction)
    for name, members in KINDS.items():
        if not opcodes.isdisjoint(members):
            return name
    return "copy" if opcodes - {"fusion", "call"} <= _PURE_COPIES else "elementwise"


def _opcodes(program: Program, instruction: Instruction) -> set[str]:
    opcode = instruction.opcode.removesuffix("-start").removesuffix("-done")
    callees = instruction.called if opcode in ("fusion", "call") else []
    inner = (_opcodes(program, inside) for name in callees for inside in program.computations.get(name, ()))
    return {opcode}.union(*inner)


def collectives(program: Program) -> list[Collective]:
    """The collectives of one device, loops as often as they run, in the order of the program's text.

    One that is combined of several has the bytes of all; a start and its done are one. A loop of unknown length counts
    once, and every branch of a conditional counts.
    """

    def of(name, times):
        computation = program.computations.get(name, [])
        shapes = {instruction.name: instruction.shape for instruction in computation}
        for instruction in computation:
            opcode = instruction.opcode.removesuffix("-start")
            if opcode in SENT:
                size = sum(bytes_of(shapes[operand]) for operand in instruction.operands)
                yield Collective(opcode, size, instruction.place, times)
            elif opcode in _CALLERS:
                for callee in instruction.called:
                    yield from of(callee, times * instruction.trips)

    return list(of(program.entry, 1))
