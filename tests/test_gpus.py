"""GPUs are told by the names that people and CUDA give them."""

import pytest

from recipes.load import UsageError
from training.gpus import GPUS, named


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100 80GB PCIe", "a100"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx6000-ada"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA B200", "b200"),
        ("rtx 4090", "rtx4090"),
        ("H200", "h200"),
    ],
)
def test_a_gpu_is_known_by_any_of_its_names(said, meant):
    assert named(said).name == meant


def test_every_gpu_is_known_by_its_own_name_and_has_numbers_of_its_kind():
    for gpu in GPUS:
        assert named(gpu.name) == gpu
        assert 20 < gpu.gib < 300
        assert 1e13 < gpu.float32 < gpu.bfloat16 < 3e15
        assert gpu.bfloat16 / gpu.float32 < 40  # a peak "with sparsity" would be beyond


@pytest.mark.parametrize("name", ["v100", "", "h10"])
def test_an_unknown_gpu_is_refused_in_one_line_that_names_those_known(name):
    with pytest.raises(UsageError, match=r"h100.*b200") as caught:
        named(name)
    assert "\n" not in str(caught.value)
