"""What is predicted of a GPU without one: turns of loops, products, and the instructions that the results have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from leni_kernels.common.gpu import support

if support.why_missing is not None:
    pytest.skip(support.why_missing, allow_module_level=True)
if support.interpreting:
    pytest.skip("with TRITON_INTERPRET=1 there is nothing to compile", allow_module_level=True)

import codegen
import triton
from gpu import machine_code, predict
from gpu.machine_code import Instruction, Loop

RESULTS = json.loads((Path(__file__).parents[2] / "benchmarks" / "results" / "predicted-h100.json").read_text())
ROWS = {row["case"]: row for row in RESULTS["cases"]}


# ---- loops -------------------------------------------------------------------------------------------------

NESTED = """
  tt.func public @kernel(%x: !tt.ptr<f32> loc("x"(#loc)), %tiles: i32 loc("tiles"(#loc)))  {
    %c1_i32 = arith.constant 1 : i32 loc(#loc1)
    %c3_i32 = arith.constant 3 : i32 loc(#loc1)
    %c10_i32 = arith.constant 10 : i32 loc(#loc1)
    %part = tt.get_program_id x : i32 loc(#loc2)
    %first = arith.muli %part, %tiles : i32 loc(#loc2)
    %last = arith.addi %first, %tiles : i32 loc(#loc2)
    %end = arith.minsi %last, %c10_i32 : i32 loc(#loc2)
    %sums = scf.for %tile = %first to %end step %c1_i32 iter_args(%a = %b) -> (tensor<4xf32>)  : i32 {
      %inner = scf.if %here -> (tensor<4xf32>) {
        scf.yield %a : tensor<4xf32> loc(#loc3)
      } else {
        scf.yield %b : tensor<4xf32> loc(#loc3)
      } loc(#loc3)
      scf.for %k = %c1_i32 to %c10_i32 step %c3_i32  : i32 {
      } loc(#loc4)
    } loc(#loc5)
    scf.for %other = %c1_i32 to %tiles step %c1_i32  : i32 {
    } loc(#loc6)
    tt.return loc(#loc)
  } loc(#loc)
"""


def test_turns_are_those_of_an_average_program():
    # Of ten tiles the programs take 4, 4 and 2.
    outer, other = machine_code.loops_of(NESTED, {"tiles": 4}, 3)
    assert (outer.turns, outer.fixed) == (pytest.approx(10 / 3), False)
    assert outer.inner == [Loop(3, fixed=True)]
    assert other == Loop(3)


def test_loops_run_in_the_branch_that_is_taken():
    """Of a condition that the launch decides; where data does, neither is what usually happens."""
    branches = """
  tt.func public @kernel(%tiles: i32 loc("tiles"(#loc))) {
    %c1_i32 = arith.constant 1 : i32 loc(#loc1)
    %here = arith.cmpi sgt, %tiles, %c1_i32 : i32 loc(#loc1)
    %there = tt.load %x : !tt.ptr<i1> loc(#loc2)
    scf.if %here {
      scf.for %a = %c1_i32 to %tiles step %c1_i32  : i32 {
      } loc(#loc4)
    } else {
      scf.for %b = %c1_i32 to %tiles step %c1_i32  : i32 {
      } loc(#loc4)
    } loc(#loc3)
    scf.if %there {
      scf.for %c = %c1_i32 to %tiles step %c1_i32  : i32 {
      } loc(#loc4)
    } loc(#loc3)
    scf.for %d = %c1_i32 to %tiles step %c1_i32  : i32 {
    } loc(#loc4)
  } loc(#loc)
"""
    assert [loop.turns for loop in machine_code.loops_of(branches, {"tiles": 5}, 3)] == [4, 0, 0, 4]


def test_bounds_that_are_not_known_are_refused():
    with pytest.raises(ValueError, match="not known"):
        machine_code.loops_of(NESTED, {}, 3)


def _code(*branches: tuple[int, int], length: int = 10) -> list[Instruction]:
    back = {last: first for first, last in branches}
    return [Instruction(address, *(("BRA", f" 0x{back[address]:x}") if address in back else ("FFMA", "")))
            for address in range(length)]


def test_instructions_run_as_often_as_the_loops_around_them():
    code = _code((2, 8), (4, 6))
    assert machine_code.executions(code, [Loop(5, inner=[Loop(3)])]) == [1, 1, 5, 5, 15, 15, 15, 5, 5, 1]


def test_loops_that_are_written_out_are_those_of_fewest_turns():
    code = _code((2, 8))
    assert machine_code.executions(code, [Loop(2, fixed=True), Loop(7, inner=[Loop(4, fixed=True)])])[4] == 7
    # Written out, a loop leaves as many of those inside it.
    code = _code((1, 2), (4, 5))
    assert machine_code.executions(code, [Loop(2, fixed=True, inner=[Loop(6)])]) == [1, 6, 6, 1, 6, 6, 1, 1, 1, 1]


def test_loops_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="2 loops"):
        machine_code.executions(_code((1, 2), (4, 5)), [Loop(2)])
    with pytest.raises(ValueError, match="1 loops"):
        machine_code.executions(_code((1, 2)), [Loop(2), Loop(3)])


def test_loads_are_on_their_way_until_one_is_used():
    code = [Instruction(number, *each) for number, each in enumerate((
        ("LDG.E.128", " R4, desc[UR4][R2.64]"), ("LDG.E.64", " R8, desc[UR4][R2.64]"), ("IADD3", " R20, R21, R22, RZ"),
        ("FADD", " R12, R9, R9"), ("LDG.E", " R13, desc[UR4][R2.64]")))]
    assert machine_code.bytes_in_flight(code, [1.0] * 5) == 24
    # In a loop what the turn before has asked for last is still to come.
    assert machine_code.bytes_in_flight([*code, Instruction(5, "BRA", " 0x0")], [3.0] * 6) == 28


@pytest.mark.parametrize(("opcode", "found"), [
    ("HGMMA.64x128x16.F32.BF16", 2 * 64 * 128 * 16 / 4), ("HMMA.16816.F32.BF16", 2 * 16 * 8 * 16),
    ("HMMA.1684.F32.TF32", 2 * 16 * 8 * 4),
    ("DMMA.884", 2 * 8 * 8 * 4), ("FFMA", 0)])
def test_flops_of_an_instruction(opcode, found):
    assert machine_code.flops(opcode) == found


# ---- launches ----------------------------------------------------------------------------------------------


COUNTED = [f"{case} channels_last bfloat16 large" for case in (
    "pointwise AdaReLU forward 64×56²", "leni_inference 64×56²", "leni_training 64×56²",
    "conv_relu_inference ResNet 64 → 64, 3×3, at 56 64×56²")]


def test_what_is_counted_is_what_the_results_have():
    """The instructions of some cases, counted anew with the versions at hand."""
    chosen = [case for case in predict.cases() if str(case) in COUNTED]
    with codegen.temporary_cache():
        rows = {row["case"]: row for row in predict.predictions(predict.CARDS["h100"], chosen, 1)}
    assert rows.keys() == set(COUNTED)
    for name, row in rows.items():
        for launch, kept in zip(row["launches"], ROWS[name]["launches"], strict=True):
            assert (launch["kernel"], launch["programs"]) == (kept["kernel"], kept["programs"])
        if triton.__version__ == RESULTS["triton"]:
            assert row["per_element"] == pytest.approx(ROWS[name]["per_element"], rel=0.02), name


def test_every_case_is_in_the_results():
    assert list(ROWS) == [str(case) for case in predict.cases()]


# Of 32 outputs a product fills half of the 64 rows that it has.
@pytest.mark.parametrize("case", [name for name in ROWS if "inference" in name and "→ 32" not in name])
def test_products_are_as_many_as_are_needed(case):
    """Loops run as often as was counted: else there would be other products. Tiles reach over the edges of images."""
    found = sum(launch["flops"] for launch in ROWS[case]["launches"])
    assert 1 <= found / ROWS[case]["flops"] <= 1.2


def test_nothing_spills():
    assert not [(case, launch["kernel"]) for case, row in ROWS.items() for launch in row["launches"]
                if launch["stack"] or launch["instructions"].get("spill")]


RESNET, VGG = "ResNet 64 → 64, 3×3, at 56 64×56²", "VGG 256 → 256, 3×3, at 56 256×56²"


@pytest.mark.parametrize(("case", "kernels", "most"), [
    ("leni_inference 64×56² channels_last", ("leni_folded_channels_last_kernel",), 0.93),
    ("leni_inference 256×14² channels_last", ("leni_folded_channels_last_kernel",), 0.9),
    ("leni_training 64×56² channels_last", ("leni_negative_gradient_kernel", "leni_input_gradient_kernel"), 2.8),
    ("leni_training 64×56² channels_first", ("leni_negative_gradient_kernel", "leni_input_gradient_kernel"), 3.5),
    ("leni_training 64×56² channels_last", ("leni_weight_gradient_kernel",), 1.2),
    (f"conv_relu_inference {RESNET} channels_last", ("conv_relu_forward_kernel",), 1.0),
    (f"conv_relu_inference {VGG} channels_last", ("conv_relu_looped_forward_kernel",), 1.7),
    (f"conv_relu_inference {VGG} channels_first",
     ("conv_relu_to_channels_last_kernel", "conv_relu_looped_forward_kernel"), 2.5),
    (f"conv_relu_training {RESNET} channels_last", ("conv_relu_weight_gradient_kernel",), 1.0),
    (f"conv_relu_training {VGG} channels_last", ("conv_relu_weight_gradient_kernel",), 4.0),
    (f"conv_relu_training {RESNET} channels_last", ("conv_relu_input_gradient_kernel",), 2.5),
])
def test_instructions_an_element(case, kernels, most):
    launches = [launch for launch in ROWS[f"{case} bfloat16 large"]["launches"] if launch["kernel"] in kernels]
    assert {launch["kernel"] for launch in launches} == set(kernels)
    assert sum(launch["per_element"] for launch in launches) <= most


STEPS = [name for name in ROWS if name.startswith("leni_training")
         and any(f" {channels}×" in name for channels in (16, 32, 64))]


@pytest.mark.parametrize("case", STEPS)
def test_a_step_takes_twice_as_long_as_a_copy_of_eight_activations(case):
    """At most, where instructions and memory are in balance; a ReLU's step, of which the ratio is, moves five."""
    assert ROWS[case]["ratio"] <= 2 * 8 / 5


@pytest.mark.parametrize("case", [name for name in ROWS if name.startswith("conv_relu") and "channels_last" in name])
def test_conv_relu_stays_near_the_products_it_stands_for(case):
    assert ROWS[case]["ratio"] <= (1.5 if "inference" in case else 2)
