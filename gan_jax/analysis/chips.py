"""What the makers say that their chips can do, and how those of a machine reach each other: sources in docs/plan.md."""

import math
from typing import NamedTuple

from gan_jax.utils.errors import InputError

# Seconds. A TPU's link: what ASTRA-sim's validation against TPU v3 takes, "as per TPU research team". NCCL's own model
# of an all-reduce of few bytes (its tuning.cc, tree, LL): a start, and a hop by NVLink or over the network.
TPU_LINK, NCCL_START, NVLINK_HOP, NETWORK_HOP = 1e-6, 6.8e-6, 0.6e-6, 5e-6


class Peak(NamedTuple):
    """Matrix products at their fastest."""

    flops: float  # a second
    how: str  # they are computed


class Chip(NamedTuple):
    """One device as JAX counts them."""

    bfloat16: Peak
    float32: dict[str, Peak]  # by config.matmul_precision
    memory: float  # bytes
    bandwidth: float  # bytes a second, of that memory
    link: float  # bytes a second that a chip can send to other chips, over all of its links
    reach: int | None  # chips that such links join; None: those of one host
    axes: int | None  # of the square or cube that the chips of a pod are joined to; None: hosts joined by a network

    def peak(self, precision: str, matmul_precision: str) -> Peak:
        """That of products as the config wants them."""
        return self.bfloat16 if precision == "bfloat16" else self.float32[matmul_precision]


class Machine(NamedTuple):
    """The devices of a plan."""

    chip: str  # one of CHIPS
    hosts: int
    devices_per_host: int
    interconnect_gbps: float | None  # gigabits a second that a device can send, where the user states it

    @property
    def count(self) -> int:
        """How many they are."""
        return self.hosts * self.devices_per_host


class Interconnect(NamedTuple):
    """How the devices of a machine reach each other."""

    bandwidth: float  # bytes a second that each device sends
    latency: float  # seconds of a collective of few bytes
    source: str  # of the bandwidth


def interconnect(machine: Machine) -> Interconnect:
    """That of the machine. Raises InputError where the links of the chip do not reach so far."""
    chip, gbps = CHIPS[machine.chip], machine.interconnect_gbps
    if chip.reach and machine.count > chip.reach:
        raise InputError(
            f"--hosts={machine.hosts} with --devices_per_host={machine.devices_per_host} is {machine.count:,} chips; "
            f"the links of {machine.chip} join {chip.reach:,} at most"
        )
    if not chip.reach and machine.hosts > 1 and gbps is None:
        raise InputError(
            f"--interconnect_gbps is missing: the links of {machine.chip} end at the host; state how many gigabits a "
            "second each device can send to those of other hosts"
        )
    if chip.axes:  # there and back along each side
        latency = TPU_LINK * 2 * chip.axes * (machine.count ** (1 / chip.axes) - 1)
    else:  # there and back: from device to device within a host, by a tree between hosts
        hops = (machine.devices_per_host - 1) * NVLINK_HOP + math.log2(machine.hosts) * NETWORK_HOP
        latency = NCCL_START + 2 * hops
    bandwidth, source = (chip.link, f"all links of a {machine.chip}") if gbps is None else (gbps * 1e9 / 8, "stated")
    return Interconnect(bandwidth, latency, source)


def _tpu(flops: float, memory: float, bandwidth: float, link: float, reach: int, axes: int) -> Chip:
    float32 = {
        "default": Peak(flops, "float32 in one pass of bfloat16"),
        "high": Peak(flops / 3, "float32 in three passes of bfloat16"),
        "highest": Peak(flops / 6, "float32 in six passes of bfloat16"),
    }
    return Chip(Peak(flops, "bfloat16"), float32, memory, bandwidth, link, reach, axes)


def _gpu(bfloat16: float, tf32: float, float32: float, memory: float, bandwidth: float, link: float) -> Chip:
    rounded = Peak(tf32, "float32 rounded to TF32")
    by_precision = {"default": rounded, "high": rounded, "highest": Peak(float32, "float32")}
    return Chip(Peak(bfloat16, "bfloat16"), by_precision, memory, bandwidth, link, None, None)


CHIPS = {
    "v4": _tpu(275e12, 32 * 2**30, 1200e9, 1.1e15 / 4096, 4096, axes=3),
    "v5e": _tpu(197e12, 16e9, 819e9, 200e9, 256, axes=2),
    "v5p": _tpu(459e12, 95e9, 2765e9, 600e9, 6144, axes=3),
    "v6e": _tpu(918e12, 32e9, 1638e9, 400e9, 256, axes=2),
    "a100": _gpu(312e12, 156e12, 19.5e12, 80e9, 2039e9, 300e9),
    "h100": _gpu(989e12, 494e12, 67e12, 80e9, 3350e9, 450e9),
}
