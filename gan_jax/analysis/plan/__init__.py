"""`--mode=plan`: what a step needs on a machine that one does not have, from the compiled program alone.

The program is compiled for as many fake devices of this machine's CPU; nothing of it is executed.
"""

from ml_collections import ConfigDict

from gan_jax.analysis.plan import page
from gan_jax.analysis.plan.chips import CHIPS, Machine, interconnect
from gan_jax.analysis.plan.planned import planned_step, predict


def plan(config: ConfigDict, machine: Machine, name: str) -> str:
    """The page. Raises InputError where the config or the machine makes no sense."""
    links = interconnect(machine)
    planned = planned_step(config, machine)
    chip = CHIPS[machine.chip]
    peak = chip.peak(config.precision, config.matmul_precision)
    return page.render(planned, machine, peak, links, predict(planned.work, machine.count, chip, peak, links), name)
