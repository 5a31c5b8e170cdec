"""Localisation scores of maps by hand, and against scikit-learn on the same 8-bit map."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score

from mmpkd.frames import Letterbox
from mmpkd.scoring import localize
from mmpkd.scoring.baselines import baseline_maps, baseline_scores
from mmpkd.scoring.localize import SCORES, score, summarize
from mmpkd.scoring.regions import Regions, foreground
from mmpkd.scoring.stats import patient_weights

GRID = (4, 4)  # of 4 px patches in a 16 px frame
WHOLE = (0, 0, 16, 16)


def regions_of(*images, box=WHOLE, grid=GRID):
    """Each image is a list of masks, one per label; a mask is a list of (top, left, bottom, right)."""
    side = 16
    roi = torch.zeros(len(images), len(images[0]), side, side, dtype=torch.bool)
    for image, masks in enumerate(images):
        for label, rectangles in enumerate(masks):
            for top, left, bottom, right in rectangles:
                roi[image, label, top:bottom, left:right] = True
    return Regions.of(roi, torch.tensor([box] * len(images)), grid)


def peak(*cells, value=1.0, rest=0.0):
    map_11hw = torch.full((1, 1, *GRID), rest)
    for row, column in cells:
        map_11hw[0, 0, row, column] = value
    return map_11hw


def by_baseline(regions, prior_Rhw=None):
    measured = {name: localize.measure(map, regions) for name, map in baseline_maps(regions, prior_Rhw).items()}
    return baseline_scores(measured, regions)


def entry(scores):
    """The values of the only image and label."""
    return {name: values[0, 0] for name, values in scores.items()}


def test_a_map_on_the_roi_and_its_inverse():
    regions = regions_of([[(4, 4, 8, 8)]])  # exactly cell (1, 1)
    right = entry(score(peak((1, 1)), regions))
    assert right["pointing"] == right["mass"] == 1
    inverse = entry(score(1 - peak((1, 1)), regions))
    assert inverse["pointing"] == inverse["mass"] == 0
    assert inverse["pixel_ap"] < 1 / 16 < right["pixel_ap"]
    # Bilinear upsampling spreads the peak by half a patch, symmetrically: the highest 16 pixels are the patch's.
    assert right["pixel_ap"] == pytest.approx(1)


def test_a_shifted_map_scores_by_its_overlap():
    regions = regions_of([[(4, 4, 8, 8)]])
    shifted = entry(score(peak((1, 2)), regions))
    assert shifted["pointing"] == shifted["mass"] == 0
    half = entry(score(peak((1, 1), (1, 2)), regions))  # a tie: half of the point falls in the ROI
    assert half["pointing"] == half["mass"] == 0.5
    unequal = peak((1, 2), value=3.0) + peak((1, 1))
    assert entry(score(unequal, regions))["pointing"] == 0
    assert entry(score(unequal, regions))["mass"] == 0.25


def test_a_cell_partly_covered_counts_by_area():
    # 2 x 4 of cell (0, 0)'s 16 pixels, and 2 x 2 of cell (1, 0)'s below a second rectangle.
    regions = regions_of([[(0, 0, 2, 4), (6, 0, 8, 2)]])
    np.testing.assert_allclose(regions.cells_Phw[0, :, 0], [0.5, 0.25, 0, 0])
    assert entry(score(peak((0, 0)), regions))["pointing"] == 0.5
    assert entry(score(peak((0, 0), (1, 0)), regions))["pointing"] == pytest.approx(0.375)
    weighted = peak((0, 0), value=1.0) + peak((1, 0), value=3.0)
    assert entry(score(weighted, regions))["mass"] == pytest.approx((0.5 + 3 * 0.25) / 4)


def test_two_rois_of_a_label_are_their_union():
    regions = regions_of([[(0, 0, 4, 4), (12, 12, 16, 16)]])
    for cell in ((0, 0), (3, 3)):
        assert entry(score(peak(cell), regions))["pointing"] == 1
    assert entry(score(peak((0, 0), (3, 3)), regions))["mass"] == 1
    assert entry(by_baseline(regions))["pointing_chance"] == 2 / 16


@pytest.mark.parametrize("value", [0.0, 0.3, 1 / 196, 7e5])
def test_a_flat_map_scores_chance(value):
    regions = regions_of([[(1, 2, 9, 7)]], [[(3, 3, 5, 5), (10, 1, 12, 16)]])
    area = regions.roi_PHW.sum(dim=(1, 2)).double() / 256
    flat = score(torch.full((2, 1, *GRID), value), regions)
    np.testing.assert_allclose(flat["pointing"][:, 0], area, rtol=1e-6)
    np.testing.assert_allclose(flat["pixel_ap"][:, 0], area, rtol=1e-12)
    np.testing.assert_allclose(flat["rank"][:, 0], area, rtol=1e-12)
    np.testing.assert_allclose(flat["mass"][:, 0], area if value else 0, rtol=1e-6)
    for name in ("cnr", "iou_otsu", "iou_tuned"):  # no contrast; nothing is above any threshold
        np.testing.assert_array_equal(flat[name], 0)


def test_padding_is_outside_for_pointing_and_mass_and_left_out_of_pixel_ap():
    box = (4, 0, 12, 16)  # a wide image: 4 px of letterbox above and below
    regions = regions_of([[(4, 4, 8, 8)]], box=box)
    chance = entry(by_baseline(regions))
    assert chance["pointing_chance"] == chance["mass_chance"] == 16 / 256
    assert chance["pixel_ap_chance"] == 16 / 128
    on_padding = entry(score(peak((0, 1)), regions))
    assert on_padding["pointing"] == on_padding["mass"] == 0
    # The same content under another padding: nothing changes in the AP.
    some = torch.rand(1, 1, *GRID, generator=torch.Generator().manual_seed(0))
    assert entry(score(some, regions))["pixel_ap"] == pytest.approx(reference_ap(some[0, 0], regions, box))


def test_a_map_of_the_content_avoids_the_padding():
    regions = regions_of([[(4, 4, 8, 8)]], box=(4, 0, 12, 16))  # of four rows of cells, two are padding
    scores = entry(by_baseline(regions))
    assert scores["pointing_content"] == scores["mass_content"] == 1 / 8 == 2 * scores["mass_chance"]
    assert {name for name in scores if name.endswith("_content")} == {"pointing_content", "mass_content"}
    # The content covers half of the cells of rows 0 and 3: a sum of 4 (1/2 + 1 + 1 + 1/2) = 12.
    cut = regions_of([[(4, 4, 8, 8)]], [[(2, 0, 4, 4)]], box=(2, 0, 14, 16))
    scores = by_baseline(cut)
    np.testing.assert_allclose(scores["pointing_content"][:, 0], [1 / 8, 0], rtol=1e-6)  # the eight whole cells tie
    np.testing.assert_allclose(scores["mass_content"][:, 0], [1 / 12, 0.5 * 0.5 / 12], rtol=1e-6)


def test_without_padding_the_map_of_the_content_is_uniform():
    scores = by_baseline(regions_of([[(1, 2, 9, 7)]]))
    assert scores["pointing_content"] == scores["pointing_chance"] and scores["mass_content"] == scores["mass_chance"]


def test_iou_by_chance_is_that_of_the_whole_content():
    regions = regions_of([[(4, 4, 8, 8)]], [[(4, 0, 12, 16)]], box=(4, 0, 12, 16))
    scores = by_baseline(regions)
    for name in ("iou_otsu_chance", "iou_tuned_chance"):
        np.testing.assert_allclose(scores[name][:, 0], [16 / 128, 1])


def test_no_random_set_has_a_higher_expected_iou_than_chance():
    """All sets of each size of 8 pixels, against ROIs of each size."""
    means = np.zeros((9, 9))
    for roi_size, set_size in itertools.product(range(1, 9), repeat=2):
        roi = set(range(roi_size))
        sets = [set(chosen) for chosen in itertools.combinations(range(8), set_size)]
        means[roi_size, set_size] = np.mean([len(roi & chosen) / len(roi | chosen) for chosen in sets])
    assert means[2, 2] == pytest.approx((1 * 1 + 12 / 3) / 28)  # one set is the ROI, twelve share a pixel with it
    chance = np.arange(9) / 8
    assert (means <= chance[:, None] + 1e-12).all() and means[:, 8] == pytest.approx(chance)


def test_random_maps_have_no_higher_iou_than_chance():
    """Each map is scored against an ROI in every cell in turn, so that no pixel is likelier to be in the ROI."""
    cells = [(row, column, row + 4, column + 4) for row in range(0, 16, 4) for column in range(0, 16, 4)]
    regions = regions_of(*[[[cell]] for cell in cells * 20])
    maps = torch.rand(20, 1, *GRID, generator=torch.Generator().manual_seed(0)).repeat_interleave(16, dim=0)
    random, chance = score(maps, regions), by_baseline(regions)
    for name in ("iou_otsu", "iou_tuned"):
        assert 1 / 32 < random[name].mean() < chance[f"{name}_chance"].mean() == 16 / 256


def test_an_roi_mask_drawn_over_the_padding_does_not_count_there():
    regions = regions_of([[(0, 0, 8, 16)]], box=(4, 0, 12, 16))
    assert entry(score(peak((0, 0)), regions))["pointing"] == 0
    assert entry(by_baseline(regions))["pixel_ap_chance"] == 0.5


def reference_ap(map_hw, regions, box):
    """sklearn on the 8-bit map, upsampled by torch on its own."""
    up = F.interpolate(map_hw[None, None].double(), regions.roi_PHW.shape[1:], mode="bilinear")[0, 0].numpy()
    top, left, bottom, right = box
    content = up[top:bottom, left:right]
    level = np.round(255 * (content - content.min()) / (content.max() - content.min()))
    roi = regions.roi_PHW[0, top:bottom, left:right].numpy()
    return average_precision_score(roi.ravel(), level.ravel())


def test_pixel_ap_agrees_with_sklearn():
    generator = np.random.default_rng(0)
    for _ in range(40):
        top, left = generator.integers(0, 4, size=2)
        bottom, right = generator.integers(10, 17, size=2)
        box = (int(top), int(left), int(bottom), int(right))
        row, column = generator.integers(4, 9, size=2)
        regions = regions_of([[(row, column, row + 2, column + 4)]], box=box)
        # Multiples of 1/256, so that both sides round the same float to the same level.
        map_11hw = torch.tensor(generator.integers(0, 256, size=(1, 1, *GRID)) / 256).float()
        expected = reference_ap(map_11hw[0, 0], regions, box)
        assert entry(score(map_11hw, regions))["pixel_ap"] == pytest.approx(expected, rel=1e-9)


def test_within_the_foreground_by_hand():
    """The breast is the left half without its last two columns of pixels, so it cuts the second cell column in two."""
    lit = np.zeros((1, 16, 16), bool)
    lit[:, :, :6] = True
    roi = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    roi[:, :, :4, 4:8] = True  # half of it on black film
    regions = Regions.of(roi, torch.tensor([WHOLE]), GRID, foreground_NHW=lit)
    chance = entry(by_baseline(regions))
    for name in ("pointing", "mass", "pixel_ap", "rank"):
        assert chance[f"{name}_chance"] == pytest.approx(8 / 96)
    assert chance["mass_content"] == chance["mass_chance"] and chance["pointing_content"] == chance["pointing_chance"]
    outside = entry(score(peak((0, 3), (0, 1), value=0.5) + peak((0, 3)), regions))
    assert outside["pointing"] == 1  # the peak on black film does not count; of cell (0, 1) what is lit is ROI
    assert outside["mass"] == pytest.approx(1)
    spread = entry(score(peak((0, 0), (0, 1)), regions))
    assert spread["pointing"] == pytest.approx(8 / (16 + 8)) and spread["mass"] == pytest.approx(8 / (16 + 8))
    away = torch.zeros_like(roi)
    away[:, :, :4, 8:12] = True
    assert len(Regions.of(away, torch.tensor([WHOLE]), GRID, foreground_NHW=lit).image_P) == 0


def test_foreground_is_the_largest_bright_region_with_its_holes():
    film = np.full((2, 16, 16), 5, np.uint8)
    film[0, 2:12, :6] = 200
    film[0, 6, 3] = 5  # a hole
    film[0, 1:3, 13:15] = 255  # a label
    breast = np.zeros((16, 16), bool)
    breast[2:12, :6] = True
    result = foreground(film)
    assert np.array_equal(result[0], breast)
    assert result[1].all()  # without contrast


def test_scores_do_not_depend_on_the_scale_of_the_map():
    regions = regions_of([[(3, 2, 9, 9)]])
    some = torch.rand(1, 1, *GRID, generator=torch.Generator().manual_seed(3))
    plain, scaled = entry(score(some, regions)), entry(score(some * 0.125, regions))
    assert scaled == pytest.approx(plain, rel=1e-6)


def test_scores_do_not_depend_on_order_or_other_images(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    roi = torch.rand(9, 3, 16, 16, generator=generator) < 0.2
    roi[::2, 1] = False
    box = torch.tensor([[0, 0, 16, 16], [4, 0, 12, 16], [0, 2, 16, 14]] * 3)
    maps = torch.rand(9, 3, *GRID, generator=generator)
    at_half = np.full(3, 0.5)  # a tuned threshold would depend on the other images
    together = score(maps, Regions.of(roi, box, GRID), at_half)
    monkeypatch.setattr(localize, "CHUNK_PIXELS", 600)  # two pairs at a time
    chunked = score(maps, Regions.of(roi, box, GRID), at_half)
    for name in SCORES:
        parts = [(maps[n : n + 1], Regions.of(roi[n : n + 1], box[n : n + 1], GRID)) for n in range(9)]
        alone = [score(*part, at_half)[name] for part in parts]
        np.testing.assert_allclose(together[name], np.concatenate(alone), rtol=1e-6)
        np.testing.assert_array_equal(together[name], chunked[name])


def test_no_roi_is_nan_and_counted():
    regions = regions_of([[(4, 4, 8, 8)], []], [[], []])
    scores = score(torch.ones(2, 1, *GRID), regions)
    for name in SCORES:
        assert scores[name].dtype == np.float64  # NaN written into a boolean array would read True
        assert np.isfinite(scores[name]).tolist() == [[True, False], [False, False]]
    summary = summarize(scores, patient_weights(np.array([0, 1])))
    assert summary["pointing_undefined"] == 3
    assert summary["pointing"] == 1 / 16


def test_without_any_roi_there_is_no_mean():
    summary = summarize(score(torch.ones(2, 1, *GRID), regions_of([[]], [[]])))
    assert np.isnan(summary["pointing"]) and summary["pointing_undefined"] == 2


def test_the_mean_is_over_labels_of_means_over_images():
    nan = np.nan
    values = {"pointing": np.array([[1.0, nan, nan], [0.0, nan, nan], [0.5, 1.0, nan]])}
    assert summarize(values) == {"pointing": 0.75, "pointing_undefined": 5}
    generator = np.random.default_rng(0)
    value_N1 = generator.random((300, 1))
    summary = summarize({"mass": value_N1}, patient_weights(np.arange(300), 3000))
    assert summary["mass_se"] == pytest.approx(value_N1.std() / np.sqrt(300), rel=0.05)


def test_centre_prior_sits_in_the_content():
    regions = regions_of([[(4, 4, 12, 12)]])  # the four cells in the middle, equally far from it
    centre = entry(by_baseline(regions))
    assert centre["pointing_centre"] == 1
    assert centre["mass_centre"] > centre["mass_chance"] == 0.25


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_negative_or_infinite_maps_are_refused(value):
    with pytest.raises(ValueError, match="negative or not finite"):
        score(peak((0, 0), value=value), regions_of([[(4, 4, 8, 8)]]))


def test_a_map_of_another_grid_is_refused():
    with pytest.raises(ValueError, match="wanted"):
        score(torch.ones(1, 1, 2, 2), regions_of([[(4, 4, 8, 8)]]))
    with pytest.raises(ValueError, match="does not divide"):
        regions_of([[(4, 4, 8, 8)]], grid=(3, 4))


def test_a_map_for_each_label_is_scored_against_that_label():
    regions = regions_of([[(0, 0, 4, 4)], [(12, 12, 16, 16)]])
    own = torch.cat([peak((0, 0)), peak((3, 3))], dim=1)
    assert score(own, regions)["pointing"].tolist() == [[1, 1]]
    assert score(own.flip(1), regions)["pointing"].tolist() == [[0, 0]]
    assert score(peak((0, 0)), regions)["pointing"].tolist() == [[1, 0]]  # one map for both


def test_thresholds_are_tuned_per_label_and_applied_to_other_images():
    """Without upsampling: one pixel per cell, with values of which a threshold passes the first, two, or three."""
    roi = torch.zeros(2, 2, 4, 4, dtype=torch.bool)
    roi[:, 0, 0, :3] = True  # label 0: the three highest
    roi[0, 1, 0, :1] = True  # label 1, on the first image only: the highest
    regions = Regions.of(roi, torch.tensor([[0, 0, 4, 4]] * 2), GRID)
    maps = torch.zeros(2, 1, *GRID)
    maps[:, 0, 0, :3] = torch.tensor([1.0, 0.55, 0.35])
    threshold_R = localize.tuned_thresholds(localize.measure(localize.by_pair(maps, regions), regions), regions)
    assert localize.CUTS == [51, 76, 102, 127, 153, 178, 204]
    assert threshold_R.tolist() == [0.2, 0.6]  # the lowest of 0.2, 0.3 and of 0.6, 0.7, 0.8
    assert score(maps, regions)["iou_tuned"][:, 0].tolist() == [1, 1]
    assert score(maps, regions)["iou_tuned"][0, 1] == 1
    elsewhere = score(maps, regions, np.array([0.5, 0.2]))["iou_tuned"]
    assert elsewhere[0].tolist() == pytest.approx([2 / 3, 1 / 3])
    assert np.isnan(score(maps, regions, np.array([0.5, np.nan]))["iou_tuned"][0, 1])
    lone = Regions.of(roi[1:], torch.tensor([[0, 0, 4, 4]]), GRID)
    assert np.isnan(localize.tuned_thresholds(localize.measure(localize.by_pair(maps[1:], lone), lone), lone)[1])


def test_scores_of_each_label_where_there_are_several():
    nan = np.nan
    result = {"mass": np.array([[1.0, nan, nan], [0.0, 0.25, nan]]), "mass_chance": np.full((2, 3), 0.5)}
    summary = summarize(result, labels=("mass", "calc", "other"))
    assert summary["mass"] == 0.375 and (summary["mass/mass"], summary["mass/calc"]) == (0.5, 0.25)
    assert np.isnan(summary["mass/other"]) and "mass_chance/calc" not in summary
    assert set(summarize({"mass": result["mass"][:, :1]}, labels=("mass",))) == {"mass", "mass_undefined"}


def test_the_training_prior_is_another_baseline():
    regions = regions_of([[(4, 4, 8, 8)]], box=(4, 0, 12, 16))
    prior_Rhw = torch.zeros(1, *GRID)
    prior_Rhw[0, 0, 1] = 1  # of the content's four rows, two of the patches' fill it: rows 0 and 1 lie in row 1
    assert entry(by_baseline(regions, prior_Rhw))["pointing_prior"] == 1
    assert "pointing_prior" not in by_baseline(regions)


def test_a_table_has_one_row_for_each_pair_with_an_roi():
    regions = regions_of([[(4, 4, 8, 8)], []], [[], []], [[], [(0, 0, 4, 4)]])
    table = localize.table(score(peak((1, 1)).expand(3, 1, *GRID), regions), regions, ["a", "b", "c"], ["x", "y"])
    assert table[["sample", "label", "pointing"]].to_numpy().tolist() == [["a", "x", 1.0], ["c", "y", 0.0]]
    assert list(table)[2:] == list(SCORES)


def test_an_original_of_the_stored_size_scores_as_in_the_store_frame():
    generator = torch.Generator().manual_seed(1)
    map_11hw = torch.rand(1, 1, *GRID, generator=generator)
    roi_HW = np.zeros((16, 16), bool)
    roi_HW[3:9, 5:14] = True
    regions = Regions.of(roi_HW[None, None], np.array([WHOLE]), GRID)
    lit = np.zeros((16, 16), bool)
    lit[:, :11] = True
    within = Regions.of(roi_HW[None, None], np.array([WHOLE]), GRID, foreground_NHW=lit[None])
    for stored, inside in ((regions, None), (within, lit)):
        expected = localize.measure(map_11hw[0], stored)
        result = localize.measure_original(map_11hw[0, 0], roi_HW, Letterbox(16, 16, 16), inside)
        torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)


def test_the_original_frame_by_hand():
    """8 x 32 pixels, stored as 4 x 16 in rows 6 to 9 of 16: cells of 4 x 4 there, half of rows 1 and 2 on the image."""
    roi_HW = np.zeros((8, 32), bool)
    roi_HW[:3, 8:16] = True  # stored rows 6 to 7.5 of columns 4 to 8: 1.5 x 4 of cell (1, 1)'s 16 pixels
    found_S = localize.measure_original(peak((1, 1))[0, 0], roi_HW, Letterbox(8, 32, 16))[0].tolist()
    result = dict(zip(localize.MEASURED, found_S, strict=False))
    assert result["pointing"] == result["mass"] == pytest.approx(6 / 16)
    # The map is a product: 15, 13, 11, 9 ... sixteenths down the rows, and from the middle column to either side.
    # Of the 24 highest pixels 20 are inside, 2 in row 3 (9 x 15); 2 places go to 4 equals (13 x 9), two inside.
    assert result["rank"] == pytest.approx(21 / 24)
    empty = localize.measure_original(peak((1, 1))[0, 0], np.zeros((8, 32), bool), Letterbox(8, 32, 16))
    assert torch.isnan(empty).all()
