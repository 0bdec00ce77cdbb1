"""The command line: `python -m gan_jax.main --config=configs/dcgan.py`; `--help` lists the flags."""

import math
import os
import sys
from functools import partial
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from gan_jax.analysis.chips import CHIPS, Machine
from gan_jax.analysis.plan import plan
from gan_jax.analysis.profiling import profile
from gan_jax.analysis.spectrum import spectrum_of_run
from gan_jax.cli import command_line
from gan_jax.cli.movie import movie
from gan_jax.cli.origins import describe
from gan_jax.cli.sample import FORMATS, WAYS, Wish, sample
from gan_jax.config import build, schema
from gan_jax.networks import Family
from gan_jax.parallel import agreement, launch
from gan_jax.parallel.exit_status import exit_status
from gan_jax.runs import workdirs
from gan_jax.runs.trained import NEWEST, restored
from gan_jax.step.optimizers import note
from gan_jax.training.evaluator import evaluate_run
from gan_jax.training.loop import train_claimed
from gan_jax.utils import runtime
from gan_jax.utils.errors import InputError

_MEASURES = {"evaluate": evaluate_run, "spectrum": spectrum_of_run}  # verbs that print numbers of a checkpoint

_CONFIG = config_flags.DEFINE_config_file("config", None, "The config: configs/NAME.py or configs/NAME.py:VARIANT.")
_PRINT_CONFIG = flags.DEFINE_bool("print_config", False, "Print the config, and where each value is from, and stop.")
_MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "sample", "movie", "export", *_MEASURES, "profile", "plan"], "What to do."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder. Default for train and profile: a new one in runs/.")
_NUM_SAMPLES = flags.DEFINE_integer(
    "num_samples", 0, "How many; sample: to write to samples.npz; evaluate: to score; spectrum: to average over."
)
_PROFILE_STEPS = flags.DEFINE_integer("profile_steps", 10, "profile: how many train steps to trace, in whole calls.")
_HOSTS = flags.DEFINE_integer("hosts", 1, "plan: how many hosts.")
_DEVICES_PER_HOST = flags.DEFINE_integer("devices_per_host", 8, "plan: chips on each host.")
_CHIP = flags.DEFINE_enum("chip", None, list(CHIPS), "plan: the kind of chip.")
_INTERCONNECT = flags.DEFINE_float("interconnect_gbps", None, "plan: Gbit/s that a device sends. Default: the chip's.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", NEWEST, "sample, export, evaluate, spectrum: newest, best, or a step.")
_AVERAGED = flags.DEFINE_bool("averaged", True, "sample, export: the generator's average, or itself.")
_OUT = flags.DEFINE_string("out", None, "sample: the folder to write into, default the run's; movie, export: the file.")
_FPS = flags.DEFINE_float("fps", 10.0, "movie: pictures a second.")
_SEED = flags.DEFINE_list("seed", [], "sample: of the latents; several with commas.")
_LABEL = flags.DEFINE_string("label", None, "sample: numbers or names of classes, in turn. Default: all.")
_LATENTS = flags.DEFINE_string("latents", None, "sample: a .npy of latents [n, d], or pictures: those of samples/.")
_TRUNCATION = flags.DEFINE_float("truncation", None, "sample: how far latents are from their mean; 1: as drawn.")
_FORMAT = flags.DEFINE_enum("format", None, FORMATS, "sample: what to write. Default: grid, and npz with num_samples.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "uint8"], "sample: of samples.npz.")
_INTERPOLATE = flags.DEFINE_integer("interpolate", 0, "sample: so many images from each seed, or latent, to the next.")
_INTERPOLATION = flags.DEFINE_enum("interpolation", "auto", WAYS, "sample: the way. auto: spherical if normal.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "train in several processes: HOST:PORT of process 0.")
_PROCESSES = flags.DEFINE_integer("num_processes", None, "train: how many processes share the run; 1: only this one.")
_PROCESS = flags.DEFINE_integer("process_id", None, "train in several processes: the number of this one, from 0.")
_RUNTIME_HELP = "fast: set an XLA flag, the allocator and the compilation cache where you have not; plain: set nothing."
_RUNTIME = flags.DEFINE_enum("runtime", "fast", list(runtime.RUNTIMES), _RUNTIME_HELP)
_ONLY_FOR = (  # flags, and the verbs that have a use for them
    ((_NUM_SAMPLES,), ("sample", *_MEASURES)),
    ((_CHECKPOINT,), ("sample", "export", *_MEASURES)),
    ((_AVERAGED,), ("sample", "export")),
    (
        (_SEED, _LABEL, _LATENTS, _TRUNCATION, _FORMAT, _DTYPE, _INTERPOLATE, _INTERPOLATION),
        ("sample",),
    ),
    ((_OUT,), ("sample", "movie", "export")),
    ((_FPS,), ("movie",)),
    ((_PROFILE_STEPS,), ("profile",)),
    ((_HOSTS, _DEVICES_PER_HOST, _CHIP, _INTERCONNECT), ("plan",)),
)


def main(argv: list[str]) -> None:
    """Dispatches to the verb; a user's mistake ends in one line and exit status 2, a diverged run in 1."""
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.FATAL)  # JAX tells of its services in several processes
    if status := exit_status(partial(_run, argv)):
        sys.exit(status)


def _run(argv: list[str]) -> None:
    if len(argv) > 1:
        raise InputError(f"unexpected argument {argv[1]!r}; flags are written --name=value")
    if _PRINT_CONFIG.value:
        schema.check(_config())
        changes = config_flags.get_override_values(flags.FLAGS["config"])
        return command_line.show(describe(_config(), command_line.config_argument(sys.argv), changes))
    _check_flags()
    if _MODE.value == "plan":
        runtime.stand_in(_HOSTS.value * _DEVICES_PER_HOST.value)
    runs_with = runtime.RUNTIMES[_RUNTIME.value]()  # before anything starts JAX's backend
    place = _COORDINATOR.value, _PROCESSES.value, _PROCESS.value
    if _MODE.value == "train":
        launch.join(*place)
    elif launch.find(*place, os.environ) is not None:
        raise InputError(f"--mode={_MODE.value} is for one process, and this is one of several; add --num_processes=1")
    {"train": _train, "profile": _profile, "plan": _plan}.get(_MODE.value, _use_run)(runs_with)


def _check_flags() -> None:
    if _NUM_SAMPLES.value < 0:
        raise InputError(f"--num_samples is {_NUM_SAMPLES.value}; it must be 0 or more")
    if _PROFILE_STEPS.value < 1:
        raise InputError(f"--profile_steps is {_PROFILE_STEPS.value}; it must be a positive integer")
    for flag, modes in ((flag, modes) for some, modes in _ONLY_FOR for flag in some):
        if flag.value != flag.default and _MODE.value not in modes:
            listed = " or ".join(f"--mode={mode}" for mode in modes)
            raise InputError(f"--{flag.name} is for {listed}; leave it out")
    if _MODE.value != "plan":
        return
    for flag in (_HOSTS, _DEVICES_PER_HOST, _INTERCONNECT):
        if flag.value is not None and not 0 < flag.value < math.inf:
            raise InputError(f"--{flag.name} is {flag.value}; it must be positive")
    if _HOSTS.value * _DEVICES_PER_HOST.value > runtime.MOST_DEVICES:
        machine = f"--hosts={_HOSTS.value} with --devices_per_host={_DEVICES_PER_HOST.value}"
        most = f"the {runtime.MOST_DEVICES:,} devices for which a CPU can stand in"
        raise InputError(f"{machine} is more than {most}; plan for fewer")
    if _CHIP.value is None:
        raise InputError(f"--chip is missing; give one of {', '.join(CHIPS)}")
    if _WORKDIR.value is not None:
        raise InputError("--workdir is not for --mode=plan, which writes nothing; leave it out")


def _train(runs_with: str) -> None:
    config = agreement.all_or_none(_config)
    if agreement.several():
        agreement.all_or_none(partial(schema.check, config))
        _require_equal_starts(config)
    setup = agreement.all_or_none(partial(build.build, config))
    of_first = agreement.by_first(lambda: str(_workdir()))
    workdir = Path(_WORKDIR.value or of_first)
    with workdirs.claimed(workdir, setup.config):
        _say(f"workdir: {workdir}\nruntime: {runs_with}")
        for prefix in (f"{player}.optimizer" for player in Family._fields):
            if agreement.is_first() and (line := note(prefix, setup.config[prefix])):
                print(line, file=sys.stderr)
        if train_claimed(setup, workdir):
            _say(f"trained {setup.config.num_steps:,} steps; samples, metrics and checkpoints are in {workdir}")


def _require_equal_starts(config: ConfigDict) -> None:
    """Raises InputError in all processes where one differs from the first in what would lead them apart."""
    values = schema.flatten(config.to_dict())
    shared = {key: value for key, value in values.items() if key not in workdirs.MAY_DIFFER_BETWEEN_PROCESSES}
    agreement.require_equal("config key", shared)
    named = [*(values[key] for key in schema.own_parts(values)), *values["evaluation.scores"].split(",")]
    own = {name.partition(":")[0] for name in named}
    agreement.require_equal("the version of", agreement.all_or_none(partial(agreement.code_versions, own)))
    agreement.require_equal("the kind of", {"devices": jax.local_devices()[0].device_kind})
    _say(f"{jax.process_count()} processes with {jax.local_device_count()} devices each, the same config and code")


def _say(text: str) -> None:
    if agreement.is_first():
        print(text, flush=True)


def _profile(runs_with: str) -> None:
    from_run = _CONFIG.value is None and _WORKDIR.value
    setup = build.build(workdirs.read_config(Path(_WORKDIR.value)) if from_run else _config())
    workdir = _workdir()
    name = command_line.config_name(sys.argv) or workdir.name
    with workdirs.claimed(workdir, setup.config):
        print(profile(setup, workdir, _PROFILE_STEPS.value, name, runs_with), end="")


def _plan(_: str) -> None:
    machine = Machine(_CHIP.value, _HOSTS.value, _DEVICES_PER_HOST.value, _INTERCONNECT.value)
    print(plan(_config(), machine, command_line.config_name(sys.argv)), end="")


def _config() -> ConfigDict:
    if _CONFIG.value is None:
        raise InputError("--config is missing; give one, such as --config=configs/dcgan.py")
    return _CONFIG.value


def _workdir() -> Path:
    return Path(_WORKDIR.value) if _WORKDIR.value else workdirs.fresh(command_line.config_name(sys.argv))


def _wish() -> Wish:
    seeds = [seed.strip() for seed in _SEED.value]
    if bad := [seed for seed in seeds if not seed.isdecimal() or int(seed) >= 2**32]:
        raise InputError(f"--seed has {bad[0]!r}; seeds are integers from 0 to 2^32 - 1, with commas")
    latents = tuple(map(int, seeds)), _LABEL.value, _LATENTS.value, _TRUNCATION.value
    return Wish(_NUM_SAMPLES.value, *latents, _INTERPOLATE.value, _INTERPOLATION.value, _FORMAT.value, _DTYPE.value)


def _use_run(runs_with: str) -> None:
    if not _WORKDIR.value:
        raise InputError(f"--workdir is missing; --mode={_MODE.value} needs the folder of a run")
    workdir = Path(_WORKDIR.value)
    if _MODE.value == "movie":
        return print("wrote", movie(workdir, Path(_OUT.value or workdir / "movie.gif"), _FPS.value))
    known = workdirs.known_source(workdir)
    # Pictures of points show the data too.
    shows_data = known is None or (len(known.shape) == 1 and _FORMAT.value != "npz")
    with_data = _MODE.value in _MEASURES or (_MODE.value == "sample" and shows_data)
    if _CONFIG.value is not None:  # which may say otherwise where the data lies, and how it is to be scored
        workdirs.require_same(workdir, workdirs.read_config(workdir), _CONFIG.value)
    run = restored(workdir, _CONFIG.value, _CHECKPOINT.value, _AVERAGED.value, with_data)
    if _MODE.value == "sample":
        for path in sample(run, Path(_OUT.value or workdir), _wish()):
            print(f"wrote {path}", flush=True)
    elif _MODE.value == "export":
        for path in run.export(_OUT.value or workdir / "generator.stablehlo"):
            print(f"wrote {path}")
    else:
        _print(_MEASURES[_MODE.value](run.setup, run.state, workdir, _NUM_SAMPLES.value))
    print(f"runtime: {runs_with}", file=sys.stderr)  # last: a mistake is one line, and stdout is the verb's own


def _print(measured: dict) -> None:
    intervals = measured.pop("intervals", {})
    for name, value in schema.flatten(measured).items():
        shown = f"{value:.6g}" if isinstance(value, float) else "did not converge" if value is None else value
        interval = "  [{:.4g}, {:.4g}]".format(*intervals[name]) if name in intervals else ""
        print(f"{name:28s} {shown}{interval}")


if __name__ == "__main__":
    app.run(main, flags_parser=command_line.parse)
