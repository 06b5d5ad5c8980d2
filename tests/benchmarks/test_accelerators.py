"""What `make accelerators` reads from compiled programs, and that a step has got nothing more than was recorded."""

import dataclasses
import importlib
import inspect
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

ROOT = Path(__file__).parents[2]
HERE = ROOT / "benchmarks" / "accelerators"
PYTHON = ROOT / ".venv-accelerators" / "bin" / "python"
RECORDED = (  # the cases of the long test
    "TPU v5e | mlp | four callbacks",
    "H100 | mlp | four callbacks",
    "| mlp | probe",
    "H100 | mlp | best",
    "H100 | mlp | sweep",
    "FSDP | mlp | four callbacks",
)


@pytest.fixture
def module(monkeypatch):
    """Imports a module of the benchmark."""
    monkeypatch.syspath_prepend(str(HERE))
    return importlib.import_module


# A step of a program for several devices: the loop over steps is dynamic, one in the step is not.
TEXT = """\
HloModule jit_run, is_scheduled=true

%fused_add (p0: f32[64,128], p1: f32[64,128]) -> f32[64,128] {
  %p0 = f32[64,128]{1,0} parameter(0)
  %p1 = f32[64,128]{1,0} parameter(1)
  ROOT %add.1 = f32[64,128]{1,0} add(%p0, %p1), metadata={op_name="jit(run)/while/body/marked/add"}
}

%fused_copy (q0: f32[64,128]) -> f32[64,128] {
  %q0 = f32[64,128]{1,0} parameter(0)
  ROOT %copy.9 = f32[64,128]{1,0} copy(%q0)
}

%layer (l: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %l = (s32[], f32[8,128]{1,0:T(8,128)S(1)}) parameter(0)
  %l.0 = s32[] get-tuple-element(%l), index=0
  %l.1 = f32[8,128]{1,0:T(8,128)S(1)} get-tuple-element(%l), index=1
  %dot.1 = f32[8,128]{1,0} custom-call(%l.1), custom_call_target="__cublas$gemm"
  ROOT %l.out = (s32[], f32[8,128]{1,0}) tuple(%l.0, %dot.1)
}

%layer.cond (k: (s32[], f32[8,128])) -> pred[] {
  %k = (s32[], f32[8,128]{1,0}) parameter(0)
  %k.0 = s32[] get-tuple-element(%k), index=0
  %k.n = s32[] constant(5)
  ROOT %lt = pred[] compare(%k.0, %k.n), direction=LT
}

%yes (y: f32[64,128]) -> f32[64,128] {
  %y = f32[64,128]{1,0} parameter(0)
  %y.1 = f32[64,128]{1,0} negate(%y)
  ROOT %y.2 = f32[64,128]{1,0} exponential(%y.1)
}

%no (n: f32[64,128]) -> f32[64,128] {
  ROOT %n = f32[64,128]{1,0} parameter(0)
}

%step (s: (s32[], f32[64,128], f32[8,128])) -> (s32[], f32[64,128], f32[8,128]) {
  %s = (s32[], f32[64,128]{1,0}, /*index=2*/f32[8,128]{1,0}) parameter(0)
  %s.0 = s32[] get-tuple-element(%s), index=0
  %s.1 = f32[64,128]{1,0} get-tuple-element(%s), index=1
  %s.2 = f32[8,128]{1,0} get-tuple-element(%s), index=2
  %one = s32[] constant(1)
  %next = s32[] add(%s.0, %one)
  %start = (s32[], f32[8,128]{1,0}) tuple(%s.0, %s.2)
  %layers = (s32[], f32[8,128]{1,0}) while(%start), condition=%layer.cond, body=%layer
  %reduced = (f32[64,128]{1,0}, f32[128]{0}) all-reduce-start(%s.1, %bias), channel_id=1, to_apply=%sum
  %bias = f32[128]{0} constant({...})
  %done = (f32[64,128]{1,0}, f32[128]{0}) all-reduce-done(%reduced)
  %moved = (f32[64,128]{1,0:T(8,128)S(1)}, f32[64,128]{1,0:T(8,128)}, u32[]) copy-start(%s.1)
  %moved.done = f32[64,128]{1,0:T(8,128)S(1)} copy-done(%moved)
  %kept = f32[64,128]{1,0} fusion(%s.1), kind=kLoop, calls=%fused_copy
  %small = s32[] copy(%next)
  %asked = pred[] compare(%next, %one), direction=GT
  %either = f32[64,128]{1,0} conditional(%asked, %kept, %kept), true_computation=%yes, false_computation=%no
  %new = f32[64,128]{1,0} fusion(%either, %kept), kind=kLoop, calls=%fused_add, metadata={op_name="marked"}
  ROOT %out = (s32[], f32[64,128]{1,0}, f32[8,128]{1,0}) tuple(%small, %new, %s.2)
}

%step.cond (c: (s32[], f32[64,128], f32[8,128])) -> pred[] {
  %c = (s32[], f32[64,128]{1,0}, f32[8,128]{1,0}) parameter(0)
  %c.0 = s32[] get-tuple-element(%c), index=0
  %c.n = s32[] constant(5)
  %c.1 = pred[] compare(%c.0, %c.n), direction=LT
  %c.2 = pred[] constant(true)
  ROOT %go = pred[] and(%c.1, %c.2)
}

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %ab = f32[] add(%a, %b)
}

ENTRY %main (x: f32[64,128], h: f32[8,128]) -> f32[64,128] {
  %x = f32[64,128]{1,0} parameter(0)
  %h = f32[8,128]{1,0} parameter(1)
  %zero = s32[] constant(0), metadata={op_name="jit(run)/while/body/marked/hoisted"}
  %first = f32[64,128]{1,0} copy(%x)
  %carry = (s32[], f32[64,128]{1,0}, f32[8,128]{1,0}) tuple(%zero, %first, %h)
  %steps = (s32[], f32[64,128]{1,0}, f32[8,128]{1,0}) while(%carry), condition=%step.cond, body=%step
  %host = f32[64,128]{1,0:S(5)} copy(%x)
  ROOT %result = f32[64,128]{1,0} get-tuple-element(%steps), index=1
}
"""


def test_the_facts_of_a_step_are_read_from_text(module):
    facts = module("hlo").step_facts(TEXT, "marked", {(64, 128)})
    assert dataclasses.asdict(facts) == {
        "dynamic_loops": 1,  # the one around the step
        "branches": 1,
        # add, the product of a layer, the comparison, two in the longer branch, the fused update
        "kernels": 6,
        "copies": 1,  # as a fusion; the prefetch is a move to another memory
        "small_copies": 1,
        "transfers": 1,
        "collectives": {"all-reduce": 2},
        "exchanged": 4 * (64 * 128 + 128),
        "copies_elsewhere": 1,  # before the loop; the one to the host is a transfer
    }


def test_single_numbers_are_no_kernels_where_a_scalar_core_computes_them(module):
    assert module("hlo").step_facts(TEXT, "marked", set(), scalar_core=True).kernels == 4


def test_a_loop_with_a_known_trip_count_is_not_dynamic(module):
    known = TEXT.replace(
        "condition=%step.cond, body=%step", 'condition=%step.cond, body=%step, backend_config={"known_trip_count":{}}'
    )
    assert module("hlo").step_facts(known, "marked", set()).dynamic_loops == 0


def test_what_is_wrong_with_a_text_is_said(module):
    hlo = module("hlo")
    with pytest.raises(ValueError, match="no ENTRY computation"):
        hlo.Module.parse("HloModule nothing")
    with pytest.raises(ValueError, match="no loop of the program contains an operation in the scope 'elsewhere'"):
        hlo.step_facts(TEXT, "elsewhere", set())


def compiled(loop):
    """A loop of training steps, compiled for the CPU."""

    def step(w):
        with jax.named_scope("marked"):
            return w - 0.1 * jnp.tanh(w @ w)

    return jax.jit(lambda w, n: loop(step, w, n)).lower(jnp.ones((64, 64)), 7).compile().as_text()


def dynamic(step, w, n):
    return jax.lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, step(c[1])), (0, w))[1]


def static(step, w, n):
    return jax.lax.fori_loop(0, 100, lambda _, w: step(w), w)


def blocks(step, w, n):
    """Steps of which those behind the end are masked, in blocks of known length."""

    def masked(_, carry):
        i, w = carry
        return i + 1, jnp.where(i < n, step(w), w)

    return jax.lax.while_loop(lambda c: c[0] < n, lambda c: jax.lax.fori_loop(0, 16, masked, c), (0, w))[1]


def branched(step, w, n):
    def one(i, w):
        return jax.lax.cond(i % 3 == n, lambda w: step(w @ w), step, w)

    return jax.lax.fori_loop(0, 100, one, w)


@pytest.mark.parametrize(("loop", "found"), [(dynamic, (1, 0)), (static, (0, 0)), (blocks, (0, 0)), (branched, (0, 1))])
def test_loops_and_branches_of_real_programs(module, loop, found):
    facts = module("hlo").step_facts(compiled(loop), "marked", {(64, 64)})
    assert (facts.dynamic_loops, facts.branches) == found


def row(module, **changed):
    """A row whose two programs are equal, but for what is changed in ours."""
    hlo, checks = module("hlo"), module("checks")
    step = hlo.StepFacts(0, 0, 30, 0, 2, 0, {"all-reduce": 1}, 4096, 3)
    hand = checks.Figures(step, 10_000_000, 0.1, 2.0)
    ours = dataclasses.replace(hand, temporaries=changed.pop("temporaries", hand.temporaries))
    ours = dataclasses.replace(ours, step=dataclasses.replace(step, **changed))
    return checks.Row("4 H100", "cuda", "mlp", "no callbacks", ours, hand)


@pytest.mark.parametrize(
    ("changed", "missed"),
    [
        ({}, None),
        ({"kernels": 36, "temporaries": 10_500_000, "copies_elsewhere": 9}, None),
        ({"kernels": 37}, "kernels of a step 37, at most 36 (by hand 30)"),
        ({"dynamic_loops": 1}, "loops of unknown trip count 1, at most 0 (by hand 0)"),
        ({"branches": 1}, "branches in a step 1, at most 0 (by hand 0)"),
        ({"copies": 2}, "copies of a weight in a step 2, at most 0 (by hand 0)"),
        ({"transfers": 1}, "transfers with the host 1, at most 0 (by hand 0)"),
        ({"collectives": {"all-reduce": 1, "all-gather": 2}}, "arrays in all-gather 2, at most 0 (by hand 0)"),
        ({"exchanged": 8192}, "bytes exchanged by a step 8,192, at most 4,096 (by hand 4,096)"),
        ({"temporaries": 11_000_000}, "MB of temporaries 11, at most 10.5 (by hand 10)"),
    ],
)
def test_a_check_that_does_not_hold_is_shown_with_its_figures(module, changed, missed):
    found, checks = row(module, **changed), module("checks")
    assert found.missed() == ([] if missed is None else [missed])
    text = checks.markdown([found])
    assert ("MISSED" in text) == (missed is not None)
    assert missed is None or missed in text


def test_loops_of_a_tpu_wait_for_no_host(module):
    assert dataclasses.replace(row(module, dynamic_loops=1), platform="tpu").missed() == []


def test_a_program_that_did_not_compile_is_missed(module):
    failed = module("checks").Row("H100", "cuda", "mlp", "x", error="RuntimeError: no")
    assert failed.missed() == ["not compiled: RuntimeError: no"]
    assert "RuntimeError: no" in module("checks").markdown([failed])


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"copies_elsewhere": 9, "kernels": 29}, None),
        ({"dynamic_loops": 1}, "dynamic loops 1, recorded 0"),
        ({"copies": 1}, "copies 1, recorded 0"),
        ({"collectives": {"all-to-all": 1}}, "all-to-all 1, recorded 0"),
    ],
)
def test_what_a_step_has_more_than_recorded_is_found(module, changed, found):
    more = module("checks").more_than([row(module, **changed)], [row(module)])
    assert more == ([] if found is None else [f"4 H100 | mlp | no callbacks: {found}"])


def test_saved_results_can_be_read_back(module, tmp_path):
    checks, rows = module("checks"), [row(module, kernels=31)]
    checks.Results({"jax": "0"}, rows).save(tmp_path / "results.json")
    assert checks.Results.load(tmp_path / "results.json").rows == rows


def test_what_is_missing_is_said(module, monkeypatch):
    targets = module("targets")
    monkeypatch.setitem(targets.PACKAGES, "tpu", "no_such_package")
    assert "the package no_such_package is needed: `make accelerators` installs it" in targets.missing("tpu")


def test_what_replaces_methods_of_the_library_takes_their_arguments(module):
    for (owner, name), function in module("library").ON_A_MESH.items():
        given, expected = (inspect.signature(fn).parameters.values() for fn in (function, getattr(owner, name)))
        assert [(p.name, p.kind, p.default) for p in given] == [(p.name, p.kind, p.default) for p in expected]


@pytest.mark.long
def test_a_step_has_no_more_than_was_recorded():
    """Compiles a part of the cases for a TPU and a GPU, in the environment of `make accelerators`."""
    made = subprocess.run(["make", ".venv-accelerators/.done"], cwd=ROOT, capture_output=True, text=True)
    if made.returncode and not PYTHON.exists():
        pytest.skip(f"`make .venv-accelerators/.done` cannot install the compilers here: {made.stderr[-300:].strip()}")
    command = [str(PYTHON), "benchmarks/accelerators", "--recorded", "--only", *RECORDED]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, f"{ran.stdout[-6000:]}\n{ran.stderr[-3000:]}"
