"""Selection keeps and drops for the reason that it gives, and is redone without decoding."""

import dataclasses

import pytest

import curation.basic
import curation.motion
import curation.visual  # noqa: F401
from curation import scorer, selection
from curation.catalog import Catalog
from curation.schema import SCORES
from recipes.load import UsageError
from recipes.schema import Select
from tests import rows
from tests.deciding import clip, decided, near, select

REAL = dict(scorer.REGISTRY)


@pytest.fixture(autouse=True)
def made_up_scorers(monkeypatch):
    monkeypatch.setattr(scorer, "REGISTRY", rows.registry())


@pytest.fixture
def catalog(tmp_path):
    with Catalog(tmp_path) as one:
        yield one


def image(name: str) -> dict:
    """An image: one frame, no duration, no motion."""
    one = clip(name)
    one["videos"][0]["is_image"] = True
    one["clips"][0] |= {"start_s": 0.0, "end_s": 0.0, "end_frame": 1, "length_4k1": 1}
    one["motion"][0] |= dict.fromkeys(["flow_mean", "shake", "freeze", "tier"])
    return one


def test_every_threshold_names_a_score_that_the_catalog_has_or_is_geometry():
    columns = set().union(*(one.columns for one in REAL.values() if one.step in SCORES))
    fields = [field.name for field in dataclasses.fields(Select)]
    thresholds = [name[4:] for name in fields if name.startswith(("min_", "max_"))]
    assert len(thresholds) > 20
    assert set(thresholds) <= columns | selection.GEOMETRY.keys()


def test_a_clip_falls_at_the_first_threshold_it_fails_in_the_order_of_the_fields(catalog):
    catalog.write(
        rows.merged(
            clip("good"),
            clip("dark", luma_mean=0.05, sharpness=0.1, noise=0.9),
            clip("soft", sharpness=0.1, noise=0.9),
            clip("noisy", noise=0.9),
            clip("exact", sharpness=0.3, noise=0.6),
        )
    )
    funnel = select(catalog, max_noise=0.6, min_sharpness=0.3, min_luma_mean=0.1)
    assert decided(catalog) == {
        "good": None,
        "exact": None,
        "dark": "min_luma_mean",
        "soft": "min_sharpness",
        "noisy": "max_noise",
    }
    names = ["min_luma_mean", "min_sharpness", "max_noise", "tiers"]
    assert [one.name for one in funnel.criteria] == names
    assert [one.dropped for one in funnel.criteria] == [1, 1, 1, 0]
    assert [one.left for one in funnel.criteria] == [4, 3, 2, 2]
    assert [one.alone for one in funnel.criteria] == [1, 2, 3, 0]
    assert (funnel.clips, funnel.kept) == (5, 2)
    assert funnel.hours == pytest.approx(5 * 4 / 3600, abs=1e-6)
    assert funnel.train + funnel.val == 2


def test_a_score_that_is_null_fails_nothing_and_neither_does_a_step_without_a_row(catalog):
    bare = clip("bare")
    for step in SCORES:
        del bare[step]
    catalog.write(clip("blank", sharpness=None, noise=None, tier=None))
    catalog.write(bare)
    select(catalog, min_sharpness=0.9, max_noise=0.1, min_flow_mean=0.0)
    assert decided(catalog) == {"blank": None, "bare": None}
    assert decided(catalog, "sampling_weight") == {"blank": 1.0, "bare": 1.0}


def test_images_are_exempt_from_duration_and_motion_and_a_short_clip_is_not(catalog):
    catalog.write(rows.merged(image("image"), clip("short")))
    select(catalog, min_duration_s=4.5, min_flow_mean=0.1)
    assert decided(catalog) == {"image": None, "short": "min_duration_s"}
    assert decided(catalog, "sampling_weight")["image"] == 1.0


def test_the_short_side_and_shape_are_those_of_what_the_crop_leaves(catalog):
    catalog.write(
        rows.merged(
            clip("letterbox", size=(1280, 400)),
            clip("whole", size=(1280, 720)),
            clip("tall", size=(500, 1280)),
        )
    )
    select(catalog, min_short_side=480, max_aspect_ratio=2.0)
    assert decided(catalog) == {
        "letterbox": "min_short_side",
        "whole": None,
        "tall": "max_aspect_ratio",
    }


def test_a_tier_without_weight_drops_and_the_others_hand_on_theirs(catalog):
    tiers = ("optimal", "static", "camera", "shaky")
    catalog.write(rows.merged(*(clip(tier, tier=tier) for tier in tiers)))
    funnel = select(catalog)
    assert decided(catalog) == {"optimal": None, "static": None, "camera": None, "shaky": "tiers"}
    weights = decided(catalog, "sampling_weight")
    assert weights == {"optimal": 1.0, "static": 0.25, "camera": 0.1, "shaky": 0.0}
    assert funnel.kept == 3


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"tiers": {"optimal": 1.0}}, "static"),
        ({"tiers": {"optimal": 1.0, "static": -1.0}}, "tiers"),
        ({"min_sharpness": float("nan")}, "min_sharpness"),
        ({"val_share": 2.0}, "val_share"),
        ({"max_watermark": 0.5}, "watermark"),
    ],
)
def test_a_number_or_name_that_makes_no_sense_is_one_line_and_decides_nothing(catalog, keys, told):
    catalog.write(clip("a", tier="static"))
    with pytest.raises(UsageError, match=told) as refused:
        select(catalog, **keys)
    assert "\n" not in str(refused.value)
    assert catalog.query("FROM decisions") == []


def test_the_quota_keeps_the_best_of_each_cluster(catalog):
    one, two = rows.vector("1"), rows.vector("2")
    some = [clip(f"a{i}", near(one, 0.99, f"a{i}"), quality=i / 10) for i in range(4)]
    some += [
        clip(f"b{i}", near(two, 0.99, f"b{i}"), quality=None, sharpness=i / 10) for i in range(4)
    ]
    catalog.write(rows.merged(*some))
    select(catalog)
    with catalog.transaction() as con:  # the clusters of so few clips are single ones
        con.execute("UPDATE clusters SET cluster = (clip_id[1] = 'b')::INTEGER")
    funnel = select(catalog, cluster_quota=2)
    fallen = {name for name, reason in decided(catalog).items() if reason == "cluster_quota"}
    assert fallen == {"a0", "a1", "b0", "b1"}
    (quota,) = [one for one in funnel.criteria if one.name == "cluster_quota"]
    assert (quota.dropped, quota.alone, quota.left) == (4, 4, 4)


def test_a_clip_needs_a_caption_only_where_one_is_required(catalog):
    blank = clip("blank")
    blank["captions"][0]["text"] = "  "
    catalog.write(rows.merged(clip("told"), clip("mute") | {"captions": []}, blank))
    select(catalog, require_caption=True)
    wanted = {"told": None, "mute": "require_caption", "blank": "require_caption"}
    assert decided(catalog) == wanted
    select(catalog, require_caption=False)
    assert set(decided(catalog).values()) == {None}


def test_profiles_are_decided_apart_and_buckets_are_capped_at_their_resolution(catalog):
    catalog.write(rows.merged(clip("large"), clip("small", size=(640, 360))))
    select(catalog, profile="480p", min_short_side=400)
    select(catalog, profile="sft")
    assert decided(catalog, profile="480p") == {"large": None, "small": "min_short_side"}
    assert decided(catalog, profile="sft") == {"large": None, "small": None}
    assert decided(catalog, "bucket", "480p")["large"] == "480p-49f-16x9"
    assert decided(catalog, "bucket", "sft")["large"] == "720p-49f-16x9"
    assert decided(catalog, "bucket", "480p")["small"] == "256p-49f-16x9"


def test_the_same_input_gives_the_same_rows_and_writes_nothing_again(catalog):
    many = [clip(f"v{i:02d}", near(rows.vector(f"{i // 4}"), 0.97, f"s{i}")) for i in range(12)]
    catalog.write(rows.merged(*many))
    first = select(catalog, duplicate_similarity=0.95, cluster_quota=1)
    before, changed = rows.content(catalog), catalog.file.stat().st_mtime_ns
    assert select(catalog, duplicate_similarity=0.95, cluster_quota=1) == first
    assert catalog.file.stat().st_mtime_ns == changed
    with Catalog(catalog.folder / "shuffled") as other:
        for one in sorted(many, key=lambda one: hash(one["videos"][0]["video_id"])):
            other.write(one)
        assert select(other, duplicate_similarity=0.95, cluster_quota=1) == first
        assert rows.content(other) == before


def test_an_empty_catalog_is_decided_without_complaint(catalog):
    catalog.start_run({}, {})
    funnel = select(catalog, min_sharpness=0.5, duplicate_similarity=0.95, cluster_quota=3)
    assert (funnel.clips, funnel.kept, funnel.hours) == (0, 0, 0.0)
    broken = {"video_id": "x", "uri": "/x", "status": "error", "error": "not a video"}
    catalog.write({"videos": [broken]})
    assert select(catalog).clips == 0


def test_fifty_thousand_clips_agree_with_a_decision_in_plain_python(catalog):
    count = 50_000
    catalog.start_run({}, {})
    with catalog.transaction() as con:
        con.execute("SELECT setseed(0.5)")
        con.execute(
            "INSERT INTO videos BY NAME SELECT 'v' || i AS video_id, 'ok' AS status, "
            f"i % 7 = 0 AS is_image FROM range({count // 10}) t(i)"
        )
        con.execute(
            "INSERT INTO clips BY NAME SELECT 'v' || (i // 10) AS video_id, "
            "'v' || (i // 10) || '-' || (i % 10) AS clip_id, 0.0 AS start_s, "
            "random() * 9 AS end_s, 1280 AS crop_w, (300 + random() * 420)::INTEGER AS crop_h, "
            "61 AS length_4k1 "
            f"FROM range({count}) t(i)"
        )
        for step, names in rows.DOUBLES.items():
            scores = ", ".join(
                f'CASE WHEN random() < 0.1 THEN NULL ELSE random() END AS "{name}"'
                for name in names.split()
            )
            tier = ", ['optimal', 'static', 'low'][1 + (random() * 2.99)::INTEGER] AS tier"
            con.execute(
                f"INSERT INTO {step} BY NAME SELECT clip_id, {scores} "
                f"{tier if step == 'motion' else ''} FROM clips"
            )
        con.execute(
            "INSERT INTO captions BY NAME SELECT clip_id, 'x' AS source, 'x' AS text FROM clips "
            "WHERE random() < 0.8"
        )
    keys = {"min_duration_s": 2.0, "min_short_side": 360, "min_sharpness": 0.2, "max_noise": 0.9}
    keys |= {"max_freeze": 0.9, "require_caption": True}
    funnel = select(catalog, **keys)
    wanted = {}
    for row in catalog.query(
        "SELECT c.*, sharpness, noise, freeze_, tier, is_image, "
        "clip_id IN (SELECT clip_id FROM captions) AS told FROM clips c "
        "JOIN videos USING (video_id) JOIN basic USING (clip_id) JOIN visual USING (clip_id) "
        'JOIN (SELECT clip_id, "freeze" AS freeze_, tier FROM motion) USING (clip_id)'
    ):
        failed = {
            "min_duration_s": not row["is_image"] and row["end_s"] < 2,
            "min_short_side": row["crop_h"] < 360,
            "min_sharpness": row["sharpness"] is not None and row["sharpness"] < 0.2,
            "max_noise": row["noise"] is not None and row["noise"] > 0.9,
            "max_freeze": row["freeze_"] is not None and row["freeze_"] > 0.9,
            "tiers": row["tier"] == "low",
            "require_caption": not row["told"],
        }
        wanted[row["clip_id"]] = next((name for name, one in failed.items() if one), None)
    found = catalog.query("SELECT clip_id, kept, reason FROM decisions")
    assert {row["clip_id"]: row["reason"] for row in found} == wanted
    assert all(row["kept"] == (row["reason"] is None) for row in found)
    assert funnel.kept == sum(reason is None for reason in wanted.values())
    assert funnel.criteria[-1].left == funnel.kept
    assert 0 < funnel.val < 0.1 * count
