"""Profiles: FLOPs and bytes that are right, busy time that is nobody's twice, a page, and a run left alone."""

import gzip
import io
import json
import re
from contextlib import redirect_stdout
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import flagsaver
from jax.profiler import ProfileData
from jax.sharding import Mesh, PartitionSpec

from experiments.benchmarks import workloads
from gan_jax import main, recipe, step
from gan_jax.analysis import profiling
from gan_jax.analysis.profiling import flops, hlo
from gan_jax.analysis.profiling.device_time import busy_seconds
from gan_jax.analysis.profiling.page import micro_batches
from gan_jax.data import Source
from gan_jax.parallel.devices import mesh
from gan_jax.runs import workdirs


@pytest.fixture(scope="module", autouse=True)
def _small():
    """The ceilings' work made small, and nothing timed for long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(profiling.SIZES, True, (64, 1 << 12))
        patch.setattr(profiling, "SHORTEST", 0.0)
        yield


# --- FLOPs


def built(config, shape):
    """The Setup of that config on black images or the origin."""
    source = Source(shape=shape, draw=lambda data, indices, keys: {"image": jnp.zeros((len(keys), *shape))}, std=1.0)
    return recipe.build(config, mesh(jax.devices()[:1]), source)


def counted(config, shape, steps=1):
    """FLOPs of so many train steps on data of that shape."""
    setup = built(config, shape)

    def steps_of(state, data):
        return step.train_steps(setup.recipe, setup.devices, setup.source, steps, state, data)

    return flops.count(steps_of, recipe.abstract_state(setup), ())


@pytest.mark.parametrize("name", ["mlp", "dcgan32"])
@pytest.mark.parametrize(("convolution", "precision"), [("plain", "float32"), ("cpu", "bfloat16")])
def test_flops_of_a_step_are_the_closed_form(name, convolution, precision):
    workload = workloads.make(f"{name}-w8-4", precision)
    workload.config.convolution = convolution
    assert counted(workload.config, workload.shape) == workloads.step_flops(workload)


def test_flops_of_a_profile_are_the_closed_form_also_where_fewer_are_needed():
    workload = workloads.make("dcgan32-w64-4")
    workload.config.convolution = "cpu"
    setup = built(workload.config, workload.shape)
    assert (
        profiling.step_flops(setup) == workloads.step_flops(workload) > 1.1 * counted(workload.config, workload.shape)
    )


def test_flops_count_critic_steps_penalties_and_every_turn_of_a_loop():
    workload = workloads.make("wgan_gp32-w8-4")
    # The closed form counts two passes through the critic's last layer that the penalty does not need.
    assert counted(workload.config, workload.shape) == pytest.approx(workloads.step_flops(workload), rel=2e-3)
    workload = workloads.make("mlp-w8-4")
    assert counted(workload.config, workload.shape, 7) == 7 * workloads.step_flops(workload)


def test_flops_that_no_result_needs_are_none():
    def function(x, w):
        _ = jnp.tanh(x @ w) @ w
        return jax.jit(lambda x: (x @ w, x @ w @ w))(x)[0]

    assert flops.count(function, jnp.ones((3, 5)), jnp.ones((5, 5))) == 2 * 3 * 5 * 5


# --- What the compiled program says


def compiled(function, *arguments):
    return jax.jit(function).lower(*arguments).compile()


def test_traffic_counts_every_micro_batch():
    """Extrapolated from two of them, it is that of three written out."""
    workload = workloads.make("mlp-w8-48")
    workload.config.accumulate = 3
    setup = built(workload.config, workload.shape)
    written_out = profiling.bytes_accessed(profiling.compiled_step(setup, unroll=True))
    assert profiling.step_traffic(setup) == pytest.approx(written_out, rel=0.05)


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[8,2]{1,0}", 64),
        ("(bf16[3]{0}, pred[], /*index=2*/s4[6])", 10),
        ("token[]", 0),
        ("f8e4m3fn[5]{0:T(256)}", 5),
    ],
)
def test_bytes_of_a_shape(shape, size):
    assert hlo.bytes_of(shape) == size


def test_operations_have_a_kind_and_a_place():
    @jax.named_scope("somewhere")
    def function(x, w):
        y = jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jnp.sum(jnp.tanh(y), axis=(0, 1, 2)) @ jnp.ones((4, 300))

    program = hlo.parse(compiled(function, jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4, 4))).as_text())
    kinds = {hlo.kind(program, each): each.place for each in program.computations[program.entry]}
    assert "somewhere" in kinds["convolution"]
    assert "conv_general_dilated" in kinds["convolution"]


def spread(function, *shapes):
    """The program of a function that each of four devices runs on its part, along the first axis, of arrays."""
    devices = jax.devices()[:4]
    if len(devices) < 4:
        pytest.skip("needs 4 devices")
    grid, part = Mesh(np.array(devices), ("i",)), PartitionSpec("i")
    mapped = jax.shard_map(function, mesh=grid, in_specs=part, out_specs=part, check_vma=False)
    return hlo.parse(compiled(mapped, *(jnp.ones(shape) for shape in shapes)).as_text())


@pytest.mark.parametrize(
    ("kind", "function"),
    [
        ("all-reduce", lambda x: jax.lax.psum(x, "i")),
        ("all-gather", lambda x: jax.lax.all_gather(x, "i")),
        ("reduce-scatter", lambda x: jax.lax.psum_scatter(x, "i", tiled=True)),
        ("all-to-all", lambda x: jax.lax.all_to_all(x, "i", 0, 0, tiled=True)),
        ("collective-permute", lambda x: jax.lax.ppermute(x, "i", [(j, (j + 1) % 4) for j in range(4)])),
    ],
)
def test_a_collective_has_the_bytes_of_one_devices_operand(kind, function):
    (found,) = hlo.collectives(spread(jax.named_scope("somewhere")(function), (32, 5)))
    assert (found.kind, found.bytes, found.count) == (kind, 8 * 5 * 4, 1)
    assert "somewhere" in found.place


def test_collectives_count_every_turn_of_a_loop_and_are_none_on_one_device():
    def function(x, w):
        def turn(_, x):
            return jax.lax.fori_loop(0, 5, lambda _, x: jnp.tanh(jax.lax.psum(x, "i")), x) + 1

        return jax.lax.fori_loop(0, 7, turn, x), jax.lax.psum(w, "i")

    found = hlo.collectives(spread(function, (4, 6), (4, 9)))
    assert sorted((each.bytes, each.count) for each in found) == [(4 * 6, 35), (4 * 9, 1)]
    alone = compiled(lambda x: jnp.sum(x @ x), jnp.ones((8, 8)))
    assert hlo.collectives(hlo.parse(alone.as_text())) == []


# What a CPU's programs do not have: started and done apart, in a call of their own, and in the condition of a loop.
ASYNCHRONOUS = """
HloModule jit_step
%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}
%scattering (p: f32[8,2]) -> f32[2,2] {
  %p = f32[8,2]{1,0} parameter(0)
  ROOT %scatter = f32[2,2]{1,0} reduce-scatter(%p), dimensions={0}, to_apply=%sum
}
%going_on (s: (s32[], pred[])) -> pred[] {
  %s = (s32[], pred[]) parameter(0)
  %own = pred[] get-tuple-element(%s), index=1
  ROOT %any = pred[] all-reduce(%own), to_apply=%sum
}
%turn (s: (s32[], pred[])) -> (s32[], pred[]) {
  ROOT %s = (s32[], pred[]) parameter(0)
}
ENTRY %main (x: f32[8,2], y: bf16[3], s: (s32[], pred[])) -> f32[8,2] {
  %x = f32[8,2]{1,0} parameter(0)
  %y = bf16[3]{0} parameter(1)
  %s = (s32[], pred[]) parameter(2)
  %begun = (f32[8,2]{1,0}, bf16[3]{0}) all-reduce-start(%x, /*index=1*/%y), to_apply=%sum, metadata={op_name="here"}
  %ended = (f32[8,2]{1,0}, bf16[3]{0}) all-reduce-done(%begun)
  %gather-start = (bf16[3]{0}, bf16[12]{0}) all-gather-start(%y), dimensions={0}
  %gather-done = bf16[12]{0} all-gather-done(%gather-start)
  %wrapped = ((f32[8,2]{1,0}), f32[2,2]{1,0}, u32[]) async-start(%x), calls=%scattering
  %unwrapped = f32[2,2]{1,0} async-done(%wrapped)
  %loop = (s32[], pred[]) while(%s), condition=%going_on, body=%turn
  ROOT %out = f32[8,2]{1,0} get-tuple-element(%ended), index=0
}
"""


def test_collectives_started_and_done_apart_are_one_and_combined_ones_add_up():
    assert hlo.collectives(hlo.parse(ASYNCHRONOUS)) == [
        hlo.Collective("all-reduce", 64 + 6, "here", 1),
        hlo.Collective("all-gather", 6, "", 1),
        hlo.Collective("reduce-scatter", 64, "", 1),
        hlo.Collective("all-reduce", 1, "", 1),
    ]


# --- Busy time

# Milliseconds. A thread runs `outer`, and within it `inner`, which hands task 1 to the pool; there task 1 works and
# hands over task 2, and the executor runs `next` within task 2's turn.
EVENTS = {
    "one": [("outer", 0, 10), ("inner", 2, 3), ("Record", 4, 1), ("end: outer", 9, 1)],
    "two": [
        ("Start", 6, 1), ("Record", 7, 2), ("Stop", 9, None),
        ("Start", 20, 2), ("ThunkExecutor::Execute", 24, 6), ("next", 25, 4), ("Stop", 30, None),
        ("Start", 40, 3), ("Stop", 50, None),
    ],
    "python": [("not an operation", 0, 100)],
}  # fmt: skip


def xspace():
    """EVENTS as the profiler would write them, in protobuf's text."""
    names = {"Record": "ThreadpoolListener::Record", "Start": "ThreadpoolListener::StartRegion"}
    names["Stop"] = "ThreadpoolListener::StopRegion"
    metadata, lines = {}, ""
    for i, (line, events) in enumerate(EVENTS.items()):
        lines += f'lines {{ id: {i} name: "{line}" '
        for name, start, last in events:
            key = metadata.setdefault(names.get(name, name), len(metadata) + 1)
            task = name in ("Record", "Start")
            duration = 0 if task or last is None else last
            lines += f"events {{ metadata_id: {key} offset_ps: {start * 10**9} duration_ps: {duration * 10**9} "
            if task:
                lines += f"stats {{ metadata_id: {1 if name == 'Record' else 2} int64_value: {last} }} "
            elif name in ("outer", "inner", "next"):
                lines += f'stats {{ metadata_id: 3 str_value: "{name}" }} '
            lines += "} "
        lines += "} "
    described = "".join(
        f'event_metadata {{ key: {key} value {{ id: {key} name: "{name}" }} }} ' for name, key in metadata.items()
    )
    described += "".join(
        f'stat_metadata {{ key: {key} value {{ id: {key} name: "{name}" }} }} '
        for key, name in enumerate(("_p", "_c", "hlo_op"), 1)
    )
    return f'planes {{ name: "/host:CPU" {lines} {described} }}'


def test_busy_time_counts_nothing_twice_and_follows_work_into_the_pool(tmp_path):
    path = tmp_path / "plugins" / "profile" / "now" / "host.xplane.pb"
    path.parent.mkdir(parents=True)
    path.write_bytes(ProfileData.text_proto_to_serialized_xspace(xspace()))
    busy = busy_seconds(tmp_path)
    # inner: 3 of its own, 3 in task 1, 4 in task 2 before the executor; task 3 is nobody's.
    assert busy == pytest.approx({"outer": 7e-3, "inner": 10e-3, "next": 4e-3})


def test_a_trace_without_operations_says_so(tmp_path):
    with pytest.raises(ValueError, match="wrote no trace"):
        busy_seconds(tmp_path)
    (tmp_path / "a.xplane.pb").write_bytes(ProfileData.text_proto_to_serialized_xspace('planes { name: "/host:CPU" }'))
    with pytest.raises(ValueError, match="without the device's operations"):
        busy_seconds(tmp_path)


# --- The verb


def profile(workdir, config=None, **values):
    """What `--mode=profile` prints."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as out:
        patch.setattr(main, "_CONFIG", SimpleNamespace(value=config))
        with flagsaver.flagsaver(mode="profile", workdir=str(workdir), runtime="plain", **values):
            main.main(["main"])
    return out.getvalue()


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def profiled(shrunk, tmp_path_factory):
    """A folder of a run, with an earlier trace, profiled without its config: what was in it before, and the page."""
    workdir, config = tmp_path_factory.mktemp("run"), shrunk("digits")
    with workdirs.claimed(workdir, config):
        (workdir / "metrics.jsonl").write_text('{"step": 1}\n')
        (workdir / "checkpoints" / "4").mkdir(parents=True)
        (workdir / "checkpoints" / "4" / "state").write_bytes(b"state")
    (workdir / "profile" / "plugins" / "profile" / "earlier").mkdir(parents=True)
    (workdir / "profile" / "plugins" / "profile" / "earlier" / "host.xplane.pb").write_bytes(b"earlier")
    before = content(workdir)
    enabled = jax.config.jax_enable_compilation_cache
    page = profile(workdir, profile_steps=3)
    assert jax.config.jax_enable_compilation_cache == enabled
    return SimpleNamespace(workdir=workdir, before=before, page=page, config=config)


def row(page, key):
    return re.search(rf"^\| {key} \| (.*) \|$", page, re.MULTILINE)[1]


def test_the_page_holds_what_it_must(profiled, shrunk):
    page = profiled.page
    assert (profiled.workdir / "profile.md").read_text() == page
    assert page.startswith(f"# Profile of {profiled.workdir.name}\n")
    assert f"jax {jax.__version__}" in row(page, "versions")
    assert row(page, "runtime") == "plain"
    assert (
        row(page, "config")
        == "float32, matmul precision default, batch 8, 1 + 1 updates a step, steps in a call: 1, jit"
    )  # log_every is 1
    milliseconds = float(re.search(r"\*\*([\d.]+) ms a step\*\*", row(page, "time"))[1])
    examples = float(re.search(r"([\d,]+) real examples/s", row(page, "time"))[1].replace(",", ""))
    assert examples == pytest.approx(8e3 / milliseconds, rel=0.01)
    workload = workloads.Workload("", profiled.config, (8, 8, 1))
    assert row(page, "work").startswith(f"{workloads.step_flops(workload) / 1e3:.3g} kFLOP a step")
    assert re.search(r"arguments .*B, temporaries .*B, output .*B .*; peak of the process", row(page, "memory"))
    assert "matrix product of 64" in row(page, "ceilings here")
    assert re.search(r"FLOP/s, [\d.]+%\*\* of the matrix product's; .*B/s, [\d.]+% of memory's", row(page, "reached"))
    assert re.search(r"(the matrix product|memory) binds", row(page, "roofline"))


def test_the_five_costliest_operations_are_shares_of_the_busy_time(profiled):
    rows = re.findall(r"^\| ([\d.e-]+) \| ([\d.]+)% \| ([a-z ]+) \| `(.+)` \| (\d+) \|$", profiled.page, re.MULTILINE)
    assert len(rows) == 5
    shares = [float(each[1]) for each in rows]
    assert shares == sorted(shares, reverse=True)
    assert 0 < sum(shares) <= 100
    busy = float(re.search(r"busy time, ([\d.]+) ms a step", profiled.page)[1])
    for milliseconds, share in ((float(each[0]), float(each[1])) for each in rows):
        assert milliseconds / busy == pytest.approx(share / 100, abs=0.01)
    assert any("discriminator_loss" in each[3] or "generator_loss" in each[3] for each in rows)


def test_the_trace_can_be_read_and_replaces_an_earlier_one(profiled):
    folders = list((profiled.workdir / "profile" / "plugins" / "profile").iterdir())
    assert len(folders) == 1
    assert folders[0].name != "earlier"
    (xplane,) = folders[0].glob("*.xplane.pb")
    assert "/host:CPU" in {plane.name for plane in ProfileData.from_file(str(xplane)).planes}
    events = json.loads(gzip.decompress((folders[0] / "perfetto_trace.json.gz").read_bytes()))["traceEvents"]
    assert len(events) > 100
    assert not list(profiled.workdir.glob("*.partial"))


def test_a_profile_leaves_the_run_alone(profiled):
    after = content(profiled.workdir)
    kept = [path for path in profiled.before if "profile" not in path.parts and path.name != ".lock"]
    assert {path: after[path] for path in kept} == {path: profiled.before[path] for path in kept}
    new = {path.relative_to(profiled.workdir).parts[0] for path in set(after) - set(profiled.before)}
    assert new == {"profile", "profile.md"}


def test_a_profile_of_a_mapped_loop_whose_trace_cannot_be_read(shrunk, tmp_path, monkeypatch):
    def unreadable(folder):
        raise ValueError("of another format\nin two lines")

    monkeypatch.setattr(profiling, "busy_seconds", unreadable)
    monkeypatch.setattr(profiling, "step_flops", lambda setup: 1e6)
    monkeypatch.setattr(profiling, "ceilings", lambda *_: profiling.Ceilings(1e9, 1e9, 64))
    changes = {"parallel": "pmap", "precision": "bfloat16", "steps_per_call": 2, "log_every": 4, "sample_every": 4}
    changes |= {"checkpoint_every": 4, "penalty.name": "none", "penalty.weight": 0.0}
    page = profile(tmp_path, shrunk("digits", None, changes))
    assert row(page, "config") == (
        "bfloat16, matmul precision default, batch 8, 1 + 1 updates a step, steps in a call: 2, pmap"
    )
    assert micro_batches(2) == " in 2 micro-batches"
    assert "The costliest operations are not known: of another format.\n" in page
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert workdirs.read_config(tmp_path).parallel == "pmap"


def test_many_devices_do_the_work_of_one(shrunk):
    """What the page says of a step's work does not depend on how many devices share it."""
    counts = []
    for devices in (jax.devices()[:1], jax.devices()):
        counts.append(profiling.step_flops(recipe.build(shrunk("digits"), mesh(devices))))
    assert len(set(counts)) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"profile_steps": -1}, r"--profile_steps is -1; it must be a positive integer"),
        ({"profile_steps": 2, "mode": "train"}, r"--profile_steps is for --mode=profile; leave it out"),
        ({"profile_steps": 2, "mode": "sample"}, r"--profile_steps is for --mode=profile; leave it out"),
        ({"num_samples": 2}, r"--num_samples is for .*; leave it out"),
        ({"interpolate": 5}, r"--interpolate is for --mode=sample; leave it out"),
        ({}, r"--config is missing; give one"),
        ({"workdir": "nowhere"}, r"cannot read nowhere/config\.json: No such file"),
        ({"other": True}, r"holds a run of another config \(seed is 0 there, 1 here\)"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(values, message, profiled, shrunk, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    values = {"mode": "profile"} | values
    other = values.pop("other", False)
    if other:
        values["workdir"] = str(profiled.workdir)
    before = content(profiled.workdir)
    monkeypatch.setattr(main, "_CONFIG", SimpleNamespace(value=shrunk("digits", None, {"seed": 1}) if other else None))
    with flagsaver.flagsaver(runtime="plain", **values), pytest.raises(SystemExit) as ended:
        main.main(["main"])
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert re.fullmatch(rf"error: .*{message}.*\n", err)
    assert content(profiled.workdir) == before
    assert not list(tmp_path.iterdir())


def test_ceilings_are_positive_and_finite():
    found = profiling.ceilings(mesh(), "bfloat16", "default")
    assert found.product == 64
    assert np.all(np.isfinite(found))
    assert min(found) > 0
