"""The tables of tilings: what they are looked up by, which of them wins, and what a broken one cannot do."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from leni_kernels import __version__
from leni_kernels.common.gpu import tilings
from leni_kernels.conv_relu.gpu import configs as conv_relu
from leni_kernels.leni.gpu import configs as leni
from leni_kernels.reborn.gpu import configs as reborn
from leni_kernels.two_branch.gpu.configs import statistics_rule

ROOT = Path(__file__).parents[2]
KEY = tilings.key("leni folded", 64, 64, 9, "bf16", "sm_90", True)
FIELDS = {"rows": 2, "positions": 32, "channels": 32, "outputs": 32, "warps": 2}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The user's cache folder, empty; what was read before is read again."""
    monkeypatch.setenv("LENI_KERNELS_CACHE", str(tmp_path / "cache"))
    _forget()
    yield tmp_path / "cache"
    _forget()


def _forget():
    for cached in (tilings._both, tilings.packaged, tilings._warn_once):
        cached.cache_clear()


def _chosen():
    return leni.folded(64, 3, "bf16", "sm_90", True)


def _write(folder, text):
    folder.mkdir()
    (folder / tilings.NAME).write_bytes(text if isinstance(text, bytes) else text.encode())


def _file(entries=(), **changes):
    return json.dumps({"format": tilings.FORMAT, "version": __version__, "tilings": list(entries)} | changes)


def _entry(**changes):
    fields = {name: value for name, value in changes.items() if name in tilings.LIMITS and name not in KEY._fields}
    return KEY._asdict() | {"tiling": FIELDS | fields} | {
        name: value for name, value in changes.items() if name not in fields}


# ---- lookups -----------------------------------------------------------------------------------------------


RULES = {
    "leni folded": lambda c, k, *where: (leni.folded(c, k, *where), leni._rule(max(16, c), k, *where)),
    "leni statistics": lambda c, k, *where: (leni.statistics(c, k, *where), statistics_rule(c, k, *where)),
    "leni weight gradient": lambda c, k, *where: (
        leni.weight_gradient(c, k, *where), leni._weight_gradient_rule(c, k, *where)),
    "leni negative gradient": lambda c, k, *where: (
        leni.negative_gradient(c, k, *where), leni._negative_gradient_rule(c, k, *where)),
    "leni input gradient": lambda c, k, *where: (
        leni.input_gradient(c, k, *where), leni._input_gradient_rule(c, k, *where)),
    "reborn statistics": lambda c, k, *where: (reborn.statistics(c, *where), statistics_rule(c, 3, *where)),
    "reborn tail": lambda c, k, *where: (reborn.tail(c, *where), reborn._rule("tail", c, *where)),
    "reborn gradient": lambda c, k, *where: (reborn.branch_gradient(c, *where), reborn._rule("gradient", c, *where)),
    "reborn weight gradient": lambda c, k, *where: (
        reborn.weight_gradient(c, *where), reborn._rule("weight gradient", c, *where)),
    **{f"conv_relu {name}": lambda c, k, *where, name=name: (
        conv_relu.choose(name, c, c, k * k, *where),
        conv_relu._rule(name, c, c, k * k, *where[:-1], where[-1] or conv_relu.converts(c, k * k)))
       for name in ("forward", "input", "weight")},
}


@pytest.mark.parametrize("kernel", RULES)
def test_the_rule_holds_wherever_no_table_has_an_entry(kernel):
    """And where the package's has one, it is chosen."""
    for architecture in ("sm_80", "sm_90", "sm_100", "gfx942", ""):
        for operand in tilings.OPERANDS:
            for channels in (16, 64, 256):
                for size in (3, 5, 7):
                    for channels_last in (False, True):
                        chosen, rule = RULES[kernel](channels, size, operand, architecture, channels_last)
                        taps = 1 if kernel.startswith("reborn") else size**2
                        key = tilings.key(kernel, channels, channels, taps, operand, architecture, channels_last)
                        listed = tilings.packaged().get(key)
                        assert chosen == (rule if listed is None else type(rule)(**listed))


def test_every_entry_of_the_package_is_chosen_and_is_not_the_rules():
    assert len(tilings.packaged()) >= 5
    for key, fields in tilings.packaged().items():
        channels_last, size = key.layout == "channels-last", round(key.taps**0.5)
        chosen, rule = RULES[key.kernel](key.channels, size, key.operand, key.architecture, channels_last)
        assert chosen._asdict() == fields
        assert chosen != rule


@pytest.mark.parametrize("channels", [33, 48, 64])
def test_channels_between_powers_of_two_share_an_entry(folder, channels):
    tilings.save({KEY: FIELDS})
    assert leni.folded(channels, 3, "bf16", "sm_90", True) == leni.Config(**FIELDS)


def test_the_extremes_share_an_entry():
    assert [tilings.rounded(channels) for channels in (1, 3, 16, 17, 256, 257, 2048)] == [16, 16, 16, 32, 256, 256, 256]


@pytest.mark.parametrize("other", [
    (32, 3, "bf16", "sm_90", True), (64, 5, "bf16", "sm_90", True), (64, 3, "fp16", "sm_90", True),
    (64, 3, "bf16", "sm_100", True), (64, 3, "bf16", "sm_90", False)])
def test_an_entry_is_for_its_own_problem_only(folder, other):
    before = leni.folded(*other)
    tilings.save({KEY: FIELDS})
    _forget()
    assert leni.folded(*other) == before


def test_a_convrelu_is_looked_up_by_outputs_and_taps(folder):
    where = ("bf16", "sm_90", True)
    fields = {"sites": 64, "channels": 32, "outputs": 32, "warps": 4, "stages": 2}
    others = [conv_relu.choose("forward", 64, outputs, taps, *where) for outputs, taps in ((64, 9), (128, 1))]
    tilings.save({tilings.key("conv_relu forward", 64, 128, 9, *where): fields})
    _forget()
    assert conv_relu.choose("forward", 64, 128, 9, *where) == conv_relu.Config(**fields)
    assert others == [conv_relu.choose("forward", 64, outputs, taps, *where) for outputs, taps in ((64, 9), (128, 1))]


# ---- which table wins --------------------------------------------------------------------------------------


def test_an_override_wins_over_the_users_table_and_that_over_the_packages(folder):
    key = next(key for key in tilings.packaged() if key.kernel == "leni folded")
    where = key.channels, round(key.taps**0.5), key.operand, key.architecture, key.layout == "channels-last"
    packaged = leni.folded(*where)
    tilings.save({key: FIELDS})
    _forget()
    assert leni.folded(*where) == leni.Config(**FIELDS) != packaged
    with tilings.without_users():
        assert leni.folded(*where) == packaged
    other = leni.Config(1, 64, 16, 16, 2)
    with tilings.override(key, other):
        assert leni.folded(*where) == other
        with tilings.override(key, None):
            assert leni.folded(*where) == leni._rule(*where)
        assert leni.folded(*where) == other
    assert leni.folded(*where) == leni.Config(**FIELDS)


def test_tables_are_read_once(folder):
    before = _chosen()
    tilings.save({KEY: FIELDS})
    assert _chosen() == before
    _forget()
    assert _chosen() == leni.Config(**FIELDS)


def test_a_broken_table_is_not_read_at_import(folder):
    _write(folder, "broken")
    done = subprocess.run([sys.executable, "-W", "error::UserWarning:leni_kernels", "-c", "import leni_kernels"],
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert (done.returncode, "tilings" in done.stderr) == (0, False), done.stderr


@pytest.mark.parametrize(("variables", "wanted"), [
    ({"LENI_KERNELS_CACHE": "/own"}, "/own"),
    ({"LENI_KERNELS_CACHE": "", "XDG_CACHE_HOME": "/cache"}, "/cache/leni_kernels"),
    ({"LENI_KERNELS_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "/home/me"}, "/home/me/.cache/leni_kernels")])
def test_the_users_folder(monkeypatch, variables, wanted):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert tilings.cache_folder() == Path(wanted)


# ---- broken tables -----------------------------------------------------------------------------------------


BROKEN = {
    "no JSON": "tilings",
    "no text": b"\xff\xfe\x00",
    "too deep": "[" * 100_000,
    "a list": "[]",
    "another format": _file(format=tilings.FORMAT + 1),
    "another version": _file([_entry()], version="0.0.0"),
    "no version": json.dumps({"format": tilings.FORMAT, "tilings": [_entry()]}),
    "no list": _file(tilings=None),
    "an entry that is none": _file([7]),
    "a key too few": _file([{name: value for name, value in _entry().items() if name != "taps"}]),
    "another layout": _file([_entry(layout="NHWC")]),
    "another operand": _file([_entry(operand="int8")]),
    "a kernel of no name": _file([_entry(kernel=None)]),
    "channels between": _file([KEY._asdict() | {"tiling": FIELDS, "channels": 48}]),
    "no taps": _file([_entry(taps=0)]),
    "a tiling that is none": _file([KEY._asdict() | {"tiling": [2, 32]}]),
    "no power of two": _file([_entry(rows=3)]),
    "no whole number": _file([_entry(rows=2.0)]),
    "a truth": _file([_entry(rows=True)]),
    "too many": _file([_entry(warps=64)]),
    "a negative": _file([_entry(positions=-4)]),
    "an unknown field": _file([KEY._asdict() | {"tiling": FIELDS | {"threads": 32}}]),
    "a product of too few pixels": _file([_entry(rows=1, positions=8)]),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_table_is_ignored_with_one_warning_that_names_it(folder, kind):
    with tilings.without_users():
        packaged = _chosen()
    _write(folder, BROKEN[kind])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert _chosen() == _chosen() == packaged
    assert [str(folder / tilings.NAME) in str(warning.message) for warning in caught] == [True]


def test_a_folder_in_the_tables_place_is_ignored_too(folder):
    (folder / tilings.NAME).mkdir(parents=True)
    with pytest.warns(UserWarning, match="is ignored"):
        _chosen()


def test_a_tiling_of_another_kernels_fields_gives_way_to_the_rule(folder):
    with tilings.without_users():
        packaged = _chosen()
    tilings.save({KEY: {"pixels": 64, "channels": 32, "outputs": 32, "warps": 4}})
    with pytest.warns(UserWarning, match="leni folded is ignored"):
        assert _chosen() == packaged


def test_no_table_is_no_reason_to_warn(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _chosen()


# ---- writing -----------------------------------------------------------------------------------------------


def test_what_is_written_is_read_and_says_how_it_was_made(tmp_path):
    path = tmp_path / "deep" / "table.json"
    tilings.write(path, {KEY: FIELDS}, machine="a GPU")
    assert tilings.read(path, __version__) == {KEY: FIELDS}
    assert json.loads(path.read_text(encoding="utf-8"))["machine"] == "a GPU"
    assert list(path.parent.iterdir()) == [path]


def test_saving_keeps_the_other_entries_but_none_of_another_version(folder):
    other = KEY._replace(operand="fp16")
    tilings.save({KEY: FIELDS})
    path = tilings.save({other: FIELDS})
    assert tilings.read(path) == {KEY: FIELDS, other: FIELDS}
    path.write_text(_file([_entry()], version="0.0.0"))
    tilings.save({other: FIELDS})
    assert tilings.read(path) == {other: FIELDS}


def test_a_folder_that_cannot_be_written_is_an_oserror(folder):
    folder.write_text("a file, not a folder")
    with pytest.raises(OSError, match="cache"):
        tilings.save({KEY: FIELDS})


# ---- the package's own -------------------------------------------------------------------------------------


def test_the_packages_table_is_this_versions():
    assert tilings.read(Path(tilings.__file__).with_name(tilings.NAME), __version__) == tilings.packaged()


def test_the_packages_table_is_installed(tmp_path):
    command = [sys.executable, "-c", "from setuptools import setup; setup()", "--quiet", "egg_info", "--egg-base",
               str(tmp_path), "build_py", "--build-lib", str(tmp_path / "installed")]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    place = Path("leni_kernels", "common", "gpu", tilings.NAME)
    assert (tmp_path / "installed" / place).read_bytes() == (ROOT / place).read_bytes()
