"""How long a step should take on devices of which only the data sheet is known."""

from collections.abc import Sequence
from typing import NamedTuple

from gan_jax.plan.chips import Chip, Interconnect, Peak
from gan_jax.profiling.hlo import Collective

# Bytes that each of n devices sends, for every byte of its own operand: with rings, which are optimal in bytes.
SENT = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: n - 1,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "ragged-all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
    "collective-broadcast": lambda n: 1,
}


class Work(NamedTuple):
    """What one device does in a step."""

    flops: float  # of matrix products and convolutions
    traffic: float  # bytes that it reads and writes in its memory
    collectives: Sequence[Collective]


class Prediction(NamedTuple):
    """Seconds of a step's parts on each device."""

    products: float  # at the peak of the chip's matrix products
    traffic: float  # at the full bandwidth of its memory
    transfer: float  # at the full bandwidth of the interconnect
    latency: float  # of all collectives

    @property
    def compute(self) -> float:
        """By the roofline: the longer of the two."""
        return max(self.products, self.traffic)

    @property
    def communication(self) -> float:
        """Of all collectives, one after the other."""
        return self.transfer + self.latency

    @property
    def efficiency(self) -> float:
        """Of weak scaling, where nothing is computed during a collective: compute / (compute + communication)."""
        return self.compute / (self.compute + self.communication)

    @property
    def overlapped_efficiency(self) -> float:
        """Of weak scaling, where all communication that can be is hidden behind the computing."""
        return self.compute / max(self.compute, self.communication)


def transfer_seconds(collective: Collective, count: int, links: Interconnect) -> float:
    """Of all its runs in a step, on `count` devices."""
    return collective.count * SENT[collective.kind](count) * collective.bytes / links.bandwidth


def predict(work: Work, count: int, chip: Chip, peak: Peak, links: Interconnect) -> Prediction:
    """The times of a step's work on each of `count` devices."""
    return Prediction(
        products=work.flops / peak.flops,
        traffic=work.traffic / chip.bandwidth,
        transfer=sum(transfer_seconds(each, count, links) for each in work.collectives),
        latency=sum(each.count for each in work.collectives) * links.latency,
    )
