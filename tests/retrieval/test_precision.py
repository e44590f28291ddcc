"""Devices and precisions, by the flags of machines that we do not have."""

import sys

import pytest

from retrieval.errors import InputError
from retrieval.precision import cpu_flags, has_native_bf16, resolve_device, resolve_precision

torch = pytest.importorskip("torch", reason="needs the train extra")
CPU = torch.device("cpu")

SAPPHIRE_RAPIDS = "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu sse2 avx512_bf16 amx_bf16 amx_tile\n"
HASWELL = "processor\t: 0\nflags\t\t: fpu sse2 avx2 fma\nprocessor\t: 1\nflags\t\t: fpu sse2 avx2 fma\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd bf16\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SAPPHIRE_RAPIDS, {"fpu", "sse2", "avx512_bf16", "amx_bf16", "amx_tile"}),
        (HASWELL, {"fpu", "sse2", "avx2", "fma"}),
        (ARM, set()),
        ("", set()),
    ],
)
def test_cpu_flags_are_those_of_the_first_core(tmp_path, text, expected):
    (tmp_path / "cpuinfo").write_text(text)
    assert cpu_flags(tmp_path / "cpuinfo") == expected


def test_a_system_without_cpuinfo_has_no_flags(tmp_path):
    assert cpu_flags(tmp_path / "nowhere") == set()


@pytest.mark.parametrize(
    ("flags", "native"),
    [({"amx_bf16"}, True), ({"avx512_bf16", "sse2"}, True), ({"avx2", "avx512f", "bf16"}, False), (set(), False)],
)
def test_bf16_is_chosen_where_the_cpu_multiplies_it(monkeypatch, flags, native):
    monkeypatch.setattr("retrieval.precision.cpu_flags", lambda: flags)
    assert has_native_bf16(CPU) == native
    assert resolve_precision("auto", CPU) == ("bf16" if native else "fp32")
    assert resolve_precision("auto") == ("bf16" if native else "fp32")


@pytest.mark.parametrize(("capability", "native"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_bf16_is_chosen_from_cuda_8_on(monkeypatch, capability, native):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert has_native_bf16(torch.device("cuda")) == native
    assert resolve_precision("auto", torch.device("cuda")) == ("bf16" if native else "fp32")


def test_other_devices_compute_in_fp32():
    assert not has_native_bf16(torch.device("meta"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_precision_asked_for_is_taken_on_any_silicon(monkeypatch, precision):
    monkeypatch.setattr("retrieval.precision.cpu_flags", set)
    assert resolve_precision(precision, CPU) == precision


@pytest.mark.parametrize("precision", ["fp16", "BF16", "", "32"])
def test_an_unknown_precision_is_refused(precision):
    with pytest.raises(InputError, match="wanted auto, fp32 or bf16"):
        resolve_precision(precision, CPU)


@pytest.mark.parametrize(("count", "expected"), [(0, "cpu"), (2, "cuda")])
def test_auto_takes_the_gpu_if_there_is_one(monkeypatch, count, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    assert resolve_device("auto").type == expected


def test_a_device_can_be_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cpu") == CPU
    assert resolve_device("cuda:1") == torch.device("cuda", 1)


@pytest.mark.parametrize(("count", "device"), [(0, "cuda"), (0, "cuda:0"), (2, "cuda:2")])
def test_a_gpu_that_is_not_here_is_refused_with_the_number_there_is(monkeypatch, count, device):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(InputError, match=rf"'{device}' is not here \({count} CUDA devices\); try --device cpu"):
        resolve_device(device)


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:-1", "cuda:x", "meta", "mps", "", "cpu:0", "CUDA", "cpu "])
def test_an_unknown_device_is_refused(device):
    with pytest.raises(InputError, match=r"unknown device .* wanted auto, cpu or cuda\[:i\]"):
        resolve_device(device)


def test_without_torch_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # what an import of a missing module meets
    with pytest.raises(InputError, match=r"torch is not installed; run: pip install 'rankwright\[train\]'"):
        resolve_device("cpu")
