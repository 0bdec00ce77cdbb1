"""Plans: closed forms of what a step needs, the prediction by hand, one line for a mistake, and nothing written."""

import os
import re
import subprocess
import sys
from functools import cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import flagsaver
from conftest import ROOT
from PIL import Image

from gan_jax import main
from gan_jax.analysis import plan as planning
from gan_jax.analysis.chips import CHIPS, Interconnect, Machine, Peak, interconnect
from gan_jax.analysis.plan import Planned, plan, planned_step, predict
from gan_jax.analysis.profiling.hlo import SENT, Collective
from gan_jax.analysis.profiling.page import quantity
from gan_jax.cli import command_line
from gan_jax.data import resident


def machine(count, chip="v5e"):
    if jax.device_count() < count:
        pytest.skip(f"needs {count} devices")
    return Machine(chip, 1, count, None)


def row(page, key):
    return re.search(rf"^\| {key} \| (.*) \|$", page, re.MULTILINE)[1]


# --- The prediction


def test_the_prediction_by_hand():
    chip = CHIPS["v5e"]._replace(bandwidth=10.0)
    collectives = [Collective("all-reduce", 40, "", 2), Collective("all-gather", 5, "", 1)]
    step = Planned(None, None, None, flops=800, counted_by_xla=None, traffic=30.0, collectives=collectives)
    chips = 4, chip, Peak(100.0, ""), Interconnect(5.0, 1.0, "")
    prediction = predict(step, *chips)
    assert (prediction.products, prediction.traffic, prediction.compute) == (2, 3, 3)
    assert prediction.transfer == pytest.approx(2 * (2 * 3 / 4) * 40 / 5 + 3 * 5 / 5)
    assert prediction.latency == 3
    assert prediction.efficiency == pytest.approx(3 / (3 + 27 + 3))
    assert prediction.overlapped_efficiency == pytest.approx(3 / 30)
    hidden = predict(step._replace(flops=8000, collectives=collectives[1:]), *chips)
    assert (hidden.compute, hidden.communication, hidden.overlapped_efficiency) == (20, 4, 1)


def test_a_collective_costs_nothing_on_one_device_that_it_need_not_send():
    assert all(SENT[kind](1) == 0 for kind in ("all-reduce", "all-gather", "reduce-scatter", "all-to-all"))


@pytest.mark.parametrize(
    ("chip", "hosts", "per_host", "microseconds"),
    [
        ("v5e", 1, 1, 0),
        ("v5e", 8, 8, 2 * 2 * 7),  # 8 x 8
        ("v4", 16, 4, 2 * 3 * 3),  # 4 x 4 x 4
        ("h100", 1, 8, 6.8 + 2 * 7 * 0.6),
        ("h100", 4, 8, 6.8 + 2 * (7 * 0.6 + 2 * 5)),
    ],
)
def test_the_latency_of_a_collective(chip, hosts, per_host, microseconds):
    links = interconnect(Machine(chip, hosts, per_host, 400.0))
    assert links.latency * 1e6 == pytest.approx(microseconds)
    assert (links.bandwidth, links.source) == (50e9, "stated")


def test_products_are_as_the_config_wants_them():
    for name, chip in CHIPS.items():
        fastest, slowest = chip.peak("bfloat16", "highest"), chip.peak("float32", "highest")
        assert fastest.flops >= chip.peak("float32", "default").flops >= 4 * slowest.flops, name
    assert CHIPS["v5e"].peak("float32", "high").flops == 197e12 / 3
    assert CHIPS["a100"].peak("float32", "high").how == "float32 rounded to TF32"


# --- What a step needs


def mlp_parameters(inputs, width, outputs):
    """Of an MLP with two hidden layers."""
    return (inputs + 1) * width + (width + 1) * width + (width + 1) * outputs


PLAYERS = "generator", "discriminator"
PLAIN = {"objective.name": "non_saturating", "penalty.name": "none", "penalty.weight": 0.0}


@pytest.fixture(scope="module")
def digits(shrunk):
    """`digits(count)`: the plan of a batch of 64 digits on so many devices, made once."""

    @cache
    def planned_on(count):
        return planned_step(shrunk("digits", None, {"batch_size": 64}), machine(count))

    return planned_on


def test_parameters_and_memory_are_the_closed_form(digits):
    found = digits(4)
    generator, discriminator = mlp_parameters(4, 8, 64), mlp_parameters(64, 8, 1)
    assert found.parameters == (generator, discriminator)
    # Both players with two moments, and G's average; then the key, the numbers of the config, counts of steps.
    assert 0 < found.memory["state"] - 4 * (4 * generator + 3 * discriminator) < 100
    assert found.memory["data"] == 1500 * (64 + 1)
    assert found.memory["temporaries"] > 0


@pytest.fixture
def without_flops(monkeypatch):
    """Counts no FLOPs, which takes as long as a small compilation: for tests of all else."""
    monkeypatch.setattr(planning, "step_flops", lambda setup: 1)


@pytest.mark.usefixtures("without_flops")
def test_what_pmap_reduces_are_the_gradients_and_some_scalars(shrunk):
    k = 2
    found = planned_step(shrunk("mixture", "ring8", {"parallel": "pmap", "discriminator.steps": k}), machine(4))
    generator, discriminator = found.parameters
    scalars = sum(each.bytes for each in found.collectives) - 4 * (k * discriminator + generator)
    assert {each.kind for each in found.collectives} == {"all-reduce"}
    assert {each.count for each in found.collectives} == {1}  # no loop hides any
    assert 0 < scalars <= 4 * (8 * k + 2)  # the metrics of k updates of D and one of G


@pytest.mark.usefixtures("without_flops")
def test_what_jit_reduces_are_the_gradients_of_each_pass_at_most(shrunk):
    found = planned_step(shrunk("mixture", "ring8", PLAIN), machine(4))
    generator, discriminator = found.parameters
    reduced = sum(each.bytes for each in found.collectives)
    assert 4 * (discriminator + generator) < reduced <= 4 * (2 * discriminator + generator + 10)


@pytest.mark.usefixtures("without_flops")
@pytest.mark.parametrize(
    ("name", "variant", "changes"),
    [
        ("mixture", "grid25", {}),
        ("wgan_gp", None, {"discriminator.steps": 1}),
        ("dcgan", None, {"conditional": True}),
        ("resnet", None, {"discriminator.steps": 1}),
    ],
)
def test_the_shipped_configs_reduce_and_exchange_nothing_else(shrunk, name, variant, changes):
    found = planned_step(shrunk(name, variant, changes), machine(2))
    assert {each.kind for each in found.collectives} == {"all-reduce"}


def test_each_device_has_its_part_of_the_work(digits):
    one, two, four = map(digits, (1, 2, 4))
    assert one.flops == two.flops == four.flops
    # a + b / n: a is what every device does, the optimisers' arithmetic.
    shared = 2 * (one.counted_by_xla - two.counted_by_xla)
    assert two.counted_by_xla - four.counted_by_xla == pytest.approx(shared / 4, rel=0.02)
    assert 0 < one.counted_by_xla - shared < 0.1 * one.counted_by_xla


def test_one_device_exchanges_nothing_and_loses_nothing(digits, shrunk, monkeypatch):
    monkeypatch.setattr(planning, "planned_step", lambda config, machine: digits(1))
    page = plan(shrunk("digits", None, {"batch_size": 64}), machine(1), "digits")
    assert page.startswith("# Plan of digits on 1 x v5e\n")
    assert row(page, "collectives") == "none a step on each device"
    assert row(page, "weak scaling").startswith("**efficiency 100.0%**")
    assert page.endswith("No collectives: nothing is exchanged.\n")


# --- Data on a disk


@pytest.fixture
def pictures(tmp_path):
    """A folder of ten images of 8x8."""
    for i in range(10):
        Image.fromarray(np.full((8, 8, 3), 20 * i, np.uint8)).save(tmp_path / f"{i}.png")
    return tmp_path


WHOLE, PART = 10 * 192, 2 * 2 * 4 * 192  # all images; of two calls of two steps, four examples on a device


@pytest.mark.usefixtures("without_flops")
@pytest.mark.parametrize(
    ("placement", "memory", "said"),
    [
        ("auto", 2 * WHOLE, f"data {quantity(WHOLE, 'B')} (a copy on each)"),
        ("auto", 2 * WHOLE - 2, f"data {quantity(PART, 'B')} (streamed)"),
        ("stream", 1e9, f"data {quantity(PART, 'B')} (streamed)"),
        ("device", WHOLE, f"data {quantity(WHOLE, 'B')} (a copy on each)"),
    ],
)
def test_a_set_lies_where_it_would_on_the_chip_and_is_not_decoded(
    shrunk, pictures, monkeypatch, placement, memory, said
):
    monkeypatch.setattr(resident, "load", None)
    if placement != "stream":  # one real program is enough: where the data lies does not depend on it
        some_program = jax.jit(jnp.dot).lower(jnp.ones((2, 2)), jnp.ones((2, 2))).compile()
        monkeypatch.setattr(planning, "compiled_step", lambda setup, **changes: some_program)
    monkeypatch.setitem(CHIPS, "v5e", CHIPS["v5e"]._replace(memory=memory))
    changes = {"data.name": "folder", "data.dir": str(pictures), "data.placement": placement}
    changes |= {"steps_per_call": 2, "log_every": 2, "evaluation.extractor": "none"}
    found = row(plan(shrunk("digits", None, changes), machine(2), "folder"), "memory")
    assert said in found
    assert found.endswith("**fits**") == (memory == 1e9)
    if memory != 1e9:
        assert "**does not fit**: take more devices or a smaller batch_size, or a larger accumulate" in found
    assert ("data.placement=stream" in found) == ("a copy on each" in found)


# --- The verb


def test_the_verb_prints_a_page_for_devices_that_are_not_there_and_writes_nothing(tmp_path):
    flags = [f"--config={ROOT / 'configs' / 'mixture.py'}:ring8", "--mode=plan", "--hosts=2", "--devices_per_host=4"]
    flags += [f"--config.{player}.{key}={value}" for player in PLAYERS for key, value in (("width", 64), ("depth", 2))]
    flags += ["--config.batch_size=16384", "--chip=h100", "--interconnect_gbps=400"]
    command = [sys.executable, "-m", "gan_jax.main", *flags]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    out = done.stdout
    assert (done.returncode, done.stderr) == (0, "")
    assert out.startswith("# Plan of mixture-ring8 on 8 x h100\n")
    assert row(out, "parameters") == f"G {mlp_parameters(2, 64, 2):,}, D {mlp_parameters(2, 64, 1):,}"
    assert "batch 16,384 (2,048 on a device)" in row(out, "config")
    assert row(out, "interconnect") == "50.0 GB/s from each device (stated), 20.4 us a collective"
    assert "all-reduce" in row(out, "collectives")
    low, high = map(float, re.findall(r"([\d.]+)%", row(out, "weak scaling")))
    assert 0 < low < high < 100
    assert not list(tmp_path.iterdir())


def test_an_unknown_chip_is_one_line(capsys):
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as ended:
        command_line.parse(["main", "--mode=plan", "--chip=v9"])
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert err == f"error: flag --chip=v9: value should be one of <{'|'.join(CHIPS)}>\n"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hosts": 0}, r"--hosts is 0; it must be positive"),
        ({"devices_per_host": -1}, r"--devices_per_host is -1; it must be positive"),
        ({"interconnect_gbps": 0.0}, r"--interconnect_gbps is 0\.0; it must be positive"),
        ({"interconnect_gbps": float("nan")}, r"--interconnect_gbps is nan; it must be positive"),
        ({"chip": None}, r"--chip is missing; give one of v4, v5e, .*"),
        ({"workdir": "runs/a"}, r"--workdir is not for --mode=plan, which writes nothing; leave it out"),
        ({"num_samples": 2}, r"--num_samples is for .*; leave it out"),
        ({"hosts": 257}, r"--hosts=257 with --devices_per_host=8 is more than the 2,048 devices .*"),
        ({"hosts": 33}, r".* is 264 chips; the links of v5e join 256 at most"),
        ({"chip": "h100", "hosts": 2}, r"--interconnect_gbps is missing: the links of h100 end at the host; .*"),
        ({"hosts": 32}, r"XLA_FLAGS make this CPU \d+ devices, and the plan needs 256; .*"),
        ({"devices_per_host": 3}, r"config key batch_size is 8, which 3 devices cannot share equally; .*"),
        ({"mode": "train", "chip": "v5e"}, r"--chip is for --mode=plan; leave it out"),
        ({"mode": "profile", "chip": None, "hosts": 2}, r"--hosts is for --mode=plan; leave it out"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(values, message, shrunk, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(main, "_CONFIG", SimpleNamespace(value=shrunk("digits")))
    values = {"mode": "plan", "chip": "v5e"} | values
    with flagsaver.flagsaver(runtime="plain", **values), pytest.raises(SystemExit) as ended:
        main.main(["main"])
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert re.fullmatch(rf"error: {message}\n", err)
    assert not list(tmp_path.iterdir())
