"""Fused LENI inference against the float64 reference: every width, plane, layout and slice."""

import copy
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import leni_kernels as lk
from leni_kernels import BackendUnavailableError, functional
from leni_kernels.leni import reference
from leni_kernels.two_branch.reference import folding_dtype

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
HALF_PRECISION = (torch.bfloat16, torch.float16)
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
WIDTHS = (1, 2, 3, 7, 8, 15, 16, 17, 20, 31, 32, 33, 48, 64, 65, 100, 128)
PLANES = ((1, 1), (1, 9), (11, 1), (5, 7), (7, 7), (14, 14), (15, 17), (28, 28), (33, 65), (3, 200), (9, 225))


@pytest.fixture(autouse=True)
def _inference():
    with torch.no_grad():
        yield


def truth(x, folded):
    return reference.leni_folded(x.double(), *(tensor.double() for tensor in folded))


def assert_parity(backend, x, folded):
    """The backend's result is the truth's to x's dtype, laid out as x is, and x is as it was."""
    before = x.clone()
    with lk.use_backend(backend):
        y = functional.leni_folded(x, *folded)
    expected = truth(x, folded)
    assert y.dtype == x.dtype
    assert y.shape == x.shape
    error, allowed = (y - expected).abs().max(), TOLERANCE[x.dtype] * expected.abs().max()
    assert error <= allowed, f"{tuple(x.shape)}: {error:.3g} > {allowed:.3g}"
    assert torch.equal(x, before)
    return y


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", WIDTHS)
def test_widths_and_planes(kernel_backend, make_folded, channels, layout, dtype):
    for index, plane in enumerate(PLANES):
        # Large cases once; the small ones in batches and with the larger kernels too.
        large = channels * math.prod(plane) > 20_000
        x = torch.randn(1 if large else 3, channels, *plane, dtype=dtype).to(memory_format=LAYOUTS[layout])
        for kernel_size in (3 + 2 * (index % 3),) if large else (3, 5, 7):
            y = assert_parity(kernel_backend, x, make_folded(channels, kernel_size, dtype))
            assert y.is_contiguous(memory_format=LAYOUTS[layout])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [256, 300, 512])
def test_wide_blocks(kernel_backend, make_folded, channels, layout, dtype):
    x = torch.randn(2, channels, 7, 9, dtype=dtype).to(memory_format=LAYOUTS[layout])
    assert_parity(kernel_backend, x, make_folded(channels, dtype=dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kernel_size", [3, 5, 7])
@pytest.mark.parametrize("channels", [1, 2, 3, 8, 15, 16, 17, 32, 48, 64, 100, 128, 512])
def test_half_precision_errs_at_most_twice_as_much_as_layers(kernel_backend, make_leni, channels, kernel_size,
                                                              layout):
    for plane in ((1, 1), (5, 7), (14, 14), (9, 225)) if channels <= 128 else ((7, 7),):
        block = make_leni(channels, kernel_size, torch.bfloat16)
        batch = 1000 if plane == (1, 1) else 2  # the largest of a few errors is luck
        x = torch.randn(batch, channels, *plane, dtype=torch.bfloat16).to(memory_format=LAYOUTS[layout])
        expected = copy.deepcopy(block).double()(x.double())
        with lk.use_backend(kernel_backend):
            y = block(x)
        with lk.use_backend("reference"):
            composed = block(x)
        assert y.dtype == torch.bfloat16
        assert y.is_contiguous(memory_format=LAYOUTS[layout])
        # Where the composed block is right by luck, the truth's own rounding is still allowed.
        rounding = (expected.bfloat16() - expected).abs().max()
        assert (y - expected).abs().max() <= max(2 * (composed - expected).abs().max(), rounding)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("scale", [2**-20, 2**-14, 1, 2**13])
@pytest.mark.parametrize("channels", [1, 3, 17, 40])
def test_float16_is_a_float32_result_rounded_once(kernel_backend, make_folded, channels, scale, layout):
    """Also where it is subnormal, and where it is beyond float16, which is infinity."""
    for index, plane in enumerate(PLANES):
        x = (torch.randn(2, channels, *plane) * scale).half().to(memory_format=LAYOUTS[layout])
        taps, weight, bias = make_folded(channels, 3 + 2 * (index % 3))
        folded = (taps, 4 * weight, scale * bias)
        with lk.use_backend(kernel_backend):
            y = functional.leni_folded(x, *folded).double()
        expected = truth(x, folded)
        error = 1e-5 * expected.abs().max()
        assert (y.isinf() >= (expected.abs() >= 65520 + error)).all()
        assert (y.isinf() <= (expected.abs() >= 65520 - error)).all()
        finite = ~y.isinf()
        allowed = (2**-11 * expected.abs()).clamp(min=2**-25) + error
        assert ((y - expected).abs() <= allowed)[finite].all()


@pytest.mark.parametrize("dtype", [*TOLERANCE, *HALF_PRECISION], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_empty_batch_gives_an_empty_batch(backend, make_folded, layout, dtype):
    x = torch.empty(0, 16, 6, 5, dtype=dtype).to(memory_format=LAYOUTS[layout])
    with lk.use_backend(backend):
        y = functional.leni_folded(x, *make_folded(16, dtype=folding_dtype(dtype)))
    assert y.shape == x.shape
    assert y.dtype == x.dtype


# ---- slices, expansions and transpositions of larger tensors -----------------------------------------------

SLICES = {
    "rows": lambda x: x[:, :, 1:-2],
    "every other row": lambda x: x[:, :, ::2],
    "columns": lambda x: x[..., 3:-2],
    "columns and rows": lambda x: x[:, :, 2:-1, 1:-4],
    "channels": lambda x: x[:, 5:-3],
    "one column": lambda x: x[..., 4:5],
    "one channel": lambda x: x[:, 7:8],
    "batch": lambda x: x[1:],
    "every other sample": lambda x: x[::2],
    "expanded batch": lambda x: x[1:2].expand(4, -1, -1, -1),
    "all at once": lambda x: x[::2, 3:20, 1::2, 2:-3],
}
ONLY_NCHW = {
    "every third channel": lambda x: x[:, ::3],
    "expanded channels": lambda x: x[:, 3:4].expand(-1, 20, -1, -1),
    "expanded rows": lambda x: x[:, :, 5:6].expand(-1, -1, 9, -1),
    "channels and rows exchanged": lambda x: x.transpose(1, 2),
    "overlapping windows": lambda x: x.as_strided((2, 9, 4, 6), (500, 7, 3, 1)),
}
ONLY_CHANNELS_LAST = {
    "every other column": lambda x: x[..., ::2],
    "expanded columns": lambda x: x[..., 5:6].expand(-1, -1, -1, 9),
    "expanded plane": lambda x: x[:, :, 5:6, 5:6].expand(-1, -1, 9, 11),
    "rows and columns exchanged": lambda x: x.transpose(2, 3),
}
READ_IN_PLACE = [(layout, name, take) for layout, cases in
                 (("nchw", {**SLICES, **ONLY_NCHW}), ("channels_last", {**SLICES, **ONLY_CHANNELS_LAST}))
                 for name, take in cases.items()]
NOT_READ_IN_PLACE = [
    ("nchw", "every other column", lambda x: x[..., ::2]),
    ("nchw", "rows and columns exchanged", lambda x: x.transpose(2, 3)),
    ("nchw", "expanded columns", lambda x: x[..., 5:6].expand(-1, -1, -1, 9)),
    ("channels_last", "every third channel", lambda x: x[:, ::3]),
    ("channels_last", "expanded channels", lambda x: x[:, 3:4].expand(-1, 20, -1, -1)),
]


def larger_tensor(layout, dtype):
    return torch.randn(3, 24, 13, 19, dtype=dtype).to(memory_format=LAYOUTS[layout])


def named(cases):
    return pytest.mark.parametrize(("layout", "take"), [(layout, take) for layout, _, take in cases],
                                   ids=[f"{layout}: {name}" for layout, name, _ in cases])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@named(READ_IN_PLACE)
def test_slices_are_read_in_place(backend, make_folded, layout, take, dtype):
    larger = larger_tensor(layout, dtype)
    before = larger.clone()
    x = take(larger)
    y = assert_parity(backend, x, make_folded(x.shape[1], dtype=dtype))
    assert torch.equal(larger, before)
    assert backend == "reference" or y.is_contiguous(memory_format=LAYOUTS[layout])


@pytest.mark.parametrize("dtype", HALF_PRECISION, ids=str)
@named(READ_IN_PLACE)
def test_slices_in_half_precision(kernel_backend, make_folded, layout, take, dtype):
    x = take(larger_tensor(layout, dtype))
    folded = make_folded(x.shape[1])
    with lk.use_backend(kernel_backend):
        y = functional.leni_folded(x, *folded)
        of_a_copy = functional.leni_folded(x.clone(memory_format=LAYOUTS[layout]), *folded)
    # A copy of one channel has both layouts, which sum in different orders: float32 sums may round apart to float16.
    unit = torch.finfo(dtype).eps if x.shape[1] == 1 and dtype == torch.float16 else 0
    torch.testing.assert_close(y, of_a_copy, rtol=unit, atol=1e-5 if unit else 0)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@named(NOT_READ_IN_PLACE)
def test_what_no_kernel_reads_goes_to_the_reference(make_folded, layout, take, dtype):
    x = take(larger_tensor(layout, dtype))
    folded = make_folded(x.shape[1], dtype=dtype)
    assert_parity(None, x, folded)
    decision, = lk.explain(functional.leni_folded, x, *folded)
    assert decision.backend == "reference"


@named(NOT_READ_IN_PLACE)
def test_what_no_kernel_reads_is_refused_by_name(kernel_backend, make_folded, layout, take):
    x = take(larger_tensor(layout, torch.float32))
    folded = make_folded(x.shape[1])
    refusal = pytest.raises(BackendUnavailableError, match="x has stride 1 neither")
    with lk.use_backend(kernel_backend), refusal:
        functional.leni_folded(x, *folded)


@settings(derandomize=True, deadline=None, database=None, max_examples=100,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.tuples(st.integers(0, 3), st.integers(1, 70), st.integers(1, 20), st.integers(1, 80)),
       steps=st.tuples(*[st.integers(1, 3)] * 4), starts=st.tuples(*[st.integers(0, 3)] * 4),
       kernel_size=st.sampled_from([3, 5, 7]), layout=st.sampled_from(sorted(LAYOUTS)))
def test_any_slice_of_any_shape(kernel_backend, make_folded, sizes, steps, starts, kernel_size, layout):
    steps = (*steps[:3], 1) if layout == "nchw" else (steps[0], 1, *steps[2:])
    along_axes = list(zip(starts, sizes, steps, strict=True))
    larger = torch.randn([start + size * step for start, size, step in along_axes])
    slices = tuple(slice(start, None, step) for start, _, step in along_axes)
    x = larger.to(memory_format=LAYOUTS[layout])[slices]
    assert x.shape == sizes
    folded = make_folded(sizes[1], kernel_size)
    with lk.use_backend(kernel_backend):
        y = functional.leni_folded(x, *folded)
    assert y.shape == sizes
    if y.numel():
        expected = truth(x, folded)
        assert (y - expected).abs().max() <= TOLERANCE[torch.float32] * expected.abs().max()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_parameters_may_be_strided(backend, make_folded, dtype):
    taps, _, bias = make_folded(6, dtype=dtype)
    strided = (taps.transpose(1, 2), torch.randn(12, 6, dtype=dtype).t(), bias[:1].expand(6))
    assert_parity(backend, torch.randn(2, 6, 7, 5, dtype=dtype), strided)


# ---- one result, whatever the threads ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*TOLERANCE, *HALF_PRECISION], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_number_of_threads_changes_no_bit(kernel_backend, make_folded, layout, dtype):
    x = torch.randn(3, 40, 29, 70, dtype=dtype).to(memory_format=LAYOUTS[layout])
    folded = make_folded(40, dtype=folding_dtype(dtype))
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            with lk.use_backend(kernel_backend):
                results.append(functional.leni_folded(x, *folded))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


def test_python_threads_may_share_a_kernel(kernel_backend, make_folded):
    cases = [(torch.randn(2, channels, 9, 20), make_folded(channels)) for channels in (3, 16, 33, 64)] * 8

    def run(case):
        with torch.no_grad():
            return functional.leni_folded(case[0], *case[1])

    with lk.use_backend(kernel_backend), ThreadPoolExecutor(4) as threads:
        together, alone = list(threads.map(run, cases)), [run(case) for case in cases]
    assert all(map(torch.equal, together, alone))


@pytest.mark.parametrize("dtype", [*TOLERANCE, *HALF_PRECISION], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_samples_do_not_depend_on_their_batch(kernel_backend, make_folded, layout, dtype):
    x = torch.randn(4, 20, 11, 37, dtype=dtype).to(memory_format=LAYOUTS[layout])
    folded = make_folded(20, dtype=folding_dtype(dtype))
    with lk.use_backend(kernel_backend):
        together = functional.leni_folded(x, *folded)
        alone = torch.cat([functional.leni_folded(sample[None], *folded) for sample in x])
    assert torch.equal(together, alone)


PAST_THE_CACHES = {"whole lines": (32, 112, 112), "whole pages": (32, 64, 64), "strips": (32, 104, 200),
                   "broken lines": (24, 57, 113), "a line and a half": (24, 16, 96)}
"""Channels and planes: what one channel's plane, or one pixel's channels, are in cache lines and pages."""


@pytest.mark.parametrize("dtype", [*TOLERANCE, *HALF_PRECISION], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sizes", PAST_THE_CACHES.values(), ids=PAST_THE_CACHES)
def test_outputs_too_large_for_a_cache(kernel_backend, make_folded, sizes, layout, dtype):
    """From 8 MiB they are written past the caches; an image alone is not."""
    batch = 1 + 8 * 2**20 // (math.prod(sizes) * dtype.itemsize)
    x = torch.randn(batch, *sizes, dtype=dtype).to(memory_format=LAYOUTS[layout])
    assert x[0].nbytes < 8 * 2**20 <= x.nbytes
    folded = make_folded(sizes[0], dtype=folding_dtype(dtype))
    with lk.use_backend(kernel_backend):
        together = functional.leni_folded(x, *folded)
        alone = torch.cat([functional.leni_folded(sample[None], *folded) for sample in x])
    assert torch.equal(together, alone)


# ---- NaN and Inf -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*TOLERANCE, *HALF_PRECISION], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("channels", [3, 16, 40])
def test_nan_and_inf_reach_what_the_reference_says(backend, make_folded, channels, value, layout, dtype):
    for kernel_size in (3, 5, 7):
        for height, width, row, column in ((9, 40, 4, 17), (9, 40, 0, 39), (1, 1, 0, 0), (6, 33, 5, 32)):
            x = torch.randn(2, channels, height, width, dtype=dtype).to(memory_format=LAYOUTS[layout])
            x[1, channels // 2, row, column] = value
            folded = make_folded(channels, kernel_size, folding_dtype(dtype))
            with lk.use_backend(backend):
                y = functional.leni_folded(x, *folded)
            expected = truth(x, folded)
            for test in (torch.isnan, torch.isposinf, torch.isneginf):
                assert torch.equal(test(y), test(expected)), (kernel_size, height, width, row, column)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_exact_zeros_and_negative_zeros(backend, make_folded, layout, dtype):
    x = torch.randn(2, 9, 6, 20, dtype=dtype)
    x = x.masked_fill(x.abs() < 0.4, 0).masked_fill(x > 1, -0.0).to(memory_format=LAYOUTS[layout])
    assert_parity(backend, x, make_folded(9, dtype=dtype))
