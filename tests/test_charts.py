"""What the curves are called, and which of them stand in one chart."""

import re

import pytest

from training.charts import CURATION, LEARNING, PARTS, TIMESTEPS, held_out, layout, multiline


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("loss", "held-out/loss"),
        ("psnr/frame 0", "held-out psnr/frame 0"),
        ("bucket/832x480x81", "held-out by bucket/832x480x81"),
        ("timestep/0050", "held-out by timestep/0050"),
        ("timestep/0050/832x480x81", "held-out by timestep 832x480x81/0050"),
    ],
)
def test_a_measure_has_its_place_among_the_curves(name, tag):
    assert held_out(name) == tag


def test_a_bucket_a_score_and_a_part_of_the_loss_have_charts_of_their_own():
    found = layout(
        [held_out(f"timestep/{level}/{size}") for level in ("0050", "0950") for size in "ab"]
        + [f"score {name}/{decile:02d}" for name in ("shake", "noise") for decile in range(1, 11)]
        + ["loss/training", "loss/kl", "held-out/lpips"]
    )
    assert found == {
        LEARNING: {"training loss": "loss/training$", "lpips on held-out clips": "held-out/lpips$"},
        PARTS: {"kl": "loss/kl$"},
        CURATION: {
            "by decile of noise": "score noise/.*$",
            "by decile of shake": "score shake/.*$",
        },
        TIMESTEPS: {
            "a": "held-out by timestep a/.*$",
            "b": "held-out by timestep b/.*$",
        },
    }


def test_a_name_with_signs_of_regular_expressions_stands_for_itself():
    (pattern,) = layout(["score a.b (c)+/01"])[CURATION].values()
    assert re.match(pattern, "score a.b (c)+/01")
    assert not re.match(pattern, "score axb (c)+/01")


def test_a_chart_is_there_once_a_curve_is():
    assert layout([]) == {}
    assert multiline(layout(["machine/MFU"])) == {
        "Is it fast?": {"MFU: share of the peak FLOP/s": ["Multiline", ["machine/MFU$"]]}
    }
