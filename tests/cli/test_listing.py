"""`python -m gan_jax`: its help, and what `list` says that there is."""

import re

import pytest
from absl import flags
from helpers.commands import run

from gan_jax import __main__ as command
from gan_jax import main  # noqa: F401  defines the flag --mode
from gan_jax.cli.listing import KINDS, listing
from gan_jax.config import schema
from gan_jax.data import SOURCES
from gan_jax.evaluation.features.extractors import EXTRACTORS
from gan_jax.evaluation.metrics.comparison import SCORES
from gan_jax.networks import FAMILIES
from gan_jax.networks.latents import PRIORS
from gan_jax.objectives import NAMED
from gan_jax.penalties import GENERATOR_PENALTIES, PENALTIES
from gan_jax.step.optimizers import OPTIMIZERS, of_optax
from gan_jax.step.step import MOVES
from gan_jax.utils.errors import InputError

PARTS = {
    "objectives": NAMED,
    "penalties": PENALTIES,
    "generator_penalties": GENERATOR_PENALTIES,
    "networks": FAMILIES,
    "optimizers": {*OPTIMIZERS, *of_optax()},
    "moves": MOVES,
    "priors": PRIORS,
    "data": SOURCES,
    "extractors": {"none", *EXTRACTORS},
    "scores": {name.format("EXTRACTOR") for name in SCORES},
    "keys": schema.table(),
}


def rows(kind, pattern=""):
    """{name: what stands after it} of the lines that are not indented, without the headline of a kind of part."""
    lines = [line for line in listing(kind, pattern).splitlines() if not re.match(r" |.* is one of these", line)]
    return dict(re.split("  +", line, maxsplit=1) for line in lines)


def test_help_names_every_verb(capsys):
    assert command.main([]) == 0
    text = capsys.readouterr().out
    for mode in flags.FLAGS["mode"].parser.enum_values:
        assert mode == "train" or f"python -m gan_jax.main --mode={mode} " in text
    for package in ("main", "sweep", "data", "evaluation", "theory"):
        assert f"python -m gan_jax.{package} " in text


def test_an_unknown_command_is_one_line(capsys):
    assert command.main(["trian"]) == 2
    assert capsys.readouterr().err.startswith("error: there is no command trian; did you mean train? there are ")


@pytest.mark.parametrize("kind", PARTS)
def test_every_part_is_listed_with_what_it_is(kind):
    assert rows(kind).keys() == set(PARTS[kind])
    assert KINDS.keys() == {*PARTS, "configs"}


def test_every_shipped_config_is_listed_with_its_variants():
    found = rows("configs")
    assert "configs/wgan_gp.py" in found
    assert "configs/__init__.py" not in found
    assert found["configs/sngan.py"].endswith("Variants: :digits, :cifar10")


def test_parameters_have_their_defaults():
    lines = listing("networks", "r3gan").splitlines()
    assert "    *.depth = 3 (an integer, 0 or more): " in "\n".join(lines)
    assert any(line.startswith("    discriminator.activation = 'leaky_relu' (one of ") for line in lines)
    assert "    consensus.weight = 0.0 (a number, 0 or more): " in listing("moves")
    (smoothing,) = listing("objectives", "mle").splitlines()[2:]
    assert smoothing.startswith("    objective.label_smoothing = 0.0 (a number from 0 to 1, 1 excluded): ")
    assert smoothing.endswith("; a sweep may vary it")
    assert "\n    *.optimizer.beta = 0.9 (a number): " in listing("optimizers", "signum")


def test_a_pattern_is_a_part_of_the_name_or_a_glob():
    assert rows("penalties", "gp").keys() == {"wgan_gp", "wgan_gp_one_sided"}
    assert rows("keys", "*.learning_rate").keys() == {
        f"{player}.optimizer.learning_rate" for player in schema.Family._fields
    }
    with pytest.raises(InputError, match="none of the penalties is named like r9; there are none, wgan_gp, "):
        listing("penalties", "r9")


def test_a_part_of_ones_own_is_listed_by_its_import_path(tmp_path, monkeypatch):
    (tmp_path / "listed_lab.py").write_text(
        "from typing import Annotated\nfrom gan_jax.utils.keys import POSITIVE\n\n\n"
        "def slope(critic, keys, real, fake, target: Annotated[float, POSITIVE, 'free slope'] = 2.0):\n"
        "    'A penalty of ours.'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert listing("penalties", "listed_lab:slope").splitlines()[1:] == [
        "listed_lab:slope  A penalty of ours.",
        "    penalty.target = 2.0 (a number greater than 0): free slope",
    ]


def test_commands_by_their_short_names():
    listed, refused = run("gan_jax", "list", "priors"), run("gan_jax", "list", "parts")
    assert (listed.returncode, listed.stdout) == (0, listing("priors") + "\n")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error: there is no list of parts; there are configs, objectives, ")
    planned = run("gan_jax", "plan", "--config=configs/digits.py")
    assert (planned.returncode, planned.stderr.partition(";")[0]) == (2, "error: --chip is missing")
