"""The integration of detectors on torchvision's Faster R-CNN, its page, its script, and the shapes of both."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from runpy import run_path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.hosts import ROOT, run_block
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, retinanet_resnet50_fpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

from rltemp import BadInputError, Signals, Temperatures, load_rule
from rltemp.data.shapes import MOST, NUM_CLASSES, SHAPES, VISIBLE, box, scene, scenes
from rltemp.integrations.detection import DetectorDistillation

OWN = {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
Batch = tuple[list[Tensor], list[dict[str, Tensor]]]
Pair = tuple[FasterRCNN, FasterRCNN]


def detector(width: int, seed: int, classes: int = NUM_CLASSES, size: int = 64, **more: Any) -> FasterRCNN:
    torch.manual_seed(seed)
    backbone = nn.Sequential(nn.Conv2d(3, width, 7, 4, 3), nn.BatchNorm2d(width), nn.ReLU())
    backbone.out_channels = width
    return FasterRCNN(
        backbone,
        min_size=size,
        max_size=size,
        rpn_anchor_generator=AnchorGenerator(((8, 20),), ((1.0,),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 3, 2),
        box_head=TwoMLPHead(9 * width, 16),
        box_predictor=FastRCNNPredictor(16, classes),
        rpn_post_nms_top_n_train=20,
        box_batch_size_per_image=12,
        **more,
    )


@pytest.fixture
def networks() -> Pair:
    student, teacher = detector(4, seed=0), detector(8, seed=1)
    with torch.no_grad():  # a teacher that says something
        teacher.roi_heads.box_predictor.cls_score.weight.mul_(30)
    return student.train(), teacher.eval()


def batch(count: int = 5) -> Batch:
    return scenes(count, seed=0).batch(torch.arange(count))


def spied(heads: Any) -> dict[str, Any]:
    """What torchvision samples, as its own method returns it: proposals and their labels, picture by picture."""
    seen: dict[str, Any] = {}
    select = heads.select_training_samples

    def spy(*args: Any) -> Any:
        found = select(*args)
        seen["boxes"], seen["labels"] = [boxes.clone() for boxes in found[0]], list(found[2])
        return found

    heads.select_training_samples = spy
    return seen


def class_logits(network: Any) -> list[Tensor]:
    """Filled with the class logits of every forward pass, which keep their gradient."""
    kept: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: tuple[Tensor, Tensor]) -> None:
        output[0].retain_grad()
        kept.append(output[0])

    network.roi_heads.box_predictor.register_forward_hook(keep)
    return kept


def logits(network: Any, images: list[Tensor], boxes: list[Tensor]) -> Tensor:
    """A detector's class logits of given boxes in its own pixels."""
    pictures, _ = network.transform(images)
    features = {"0": network.backbone(pictures.tensors)}
    heads = network.roi_heads
    return heads.box_predictor(heads.box_head(heads.box_roi_pool(features, boxes, pictures.image_sizes)))[0]


def kl(student: Tensor, teacher: Tensor, by_student: Tensor, by_teacher: Tensor) -> Tensor:
    log_student = F.log_softmax(student / by_student[:, None], -1)
    return F.kl_div(log_student, F.softmax(teacher / by_teacher[:, None], -1), reduction="none").sum(-1)


def dtkd(student: Tensor, teacher: Tensor) -> Tensor:
    """Wei and Bai's rule at reference 4: temperatures as the largest logits are, 4 on average."""
    ours, theirs = student.amax(-1), teacher.amax(-1)
    both = (ours > 0) & (theirs > 0)
    four = torch.full_like(ours, 4.0)
    by_student = torch.where(both, 2 * ours / (ours + theirs) * 4, four)
    by_teacher = torch.where(both, 2 * theirs / (ours + theirs) * 4, four)
    return kl(student, teacher, by_student, by_teacher) * by_student * by_teacher


def plain(student: Tensor, teacher: Tensor) -> Tensor:
    four = torch.full_like(student[:, 0], 4.0)
    return 16 * kl(student, teacher, four, four)


def universal(student: Tensor, teacher: Tensor) -> Tensor:
    found = load_rule("universal@1")(Signals(student, teacher, progress=0.5))
    return found.weight * kl(student, teacher, found.student, found.teacher)


BY_HAND: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "dtkd:kd_weight=1,plain_kd_weight=0,warmup=0": dtkd,
    "fixed:4": lambda student, teacher: 0.9 * plain(student, teacher),
    "universal@1": lambda student, teacher: 0.9 * universal(student, teacher),
}


@pytest.mark.parametrize("size", [64, 96])
@pytest.mark.parametrize("method", BY_HAND)
def test_the_loss_is_the_methods_on_the_proposals_that_torchvision_sampled(method: str, size: int) -> None:
    student = detector(4, seed=0).train()
    teacher = detector(8, seed=1, size=size, image_mean=[0.3] * 3, image_std=[0.1] * 3).eval()
    with torch.no_grad():
        for network in (student, teacher):
            network.roi_heads.box_predictor.cls_score.weight.mul_(30)
    seen, (images, targets) = spied(student.roi_heads), batch()
    distillation = DetectorDistillation(student, teacher, method)
    distillation.progress = 0.5
    loss = student(images, targets)["loss_kd"]
    distillation.remove()
    with torch.no_grad():
        both = logits(student, images, seen["boxes"]), logits(teacher, images, [b * size / 64 for b in seen["boxes"]])
        assert loss.item() == pytest.approx(BY_HAND[method](*both).mean().item(), rel=1e-5)
        others = [other(*both).mean().item() for name, other in BY_HAND.items() if name != method]
    assert all(abs(loss.item() - other) > 1e-3 for other in others), "no other method gives this number"


def test_every_proposal_has_its_own_temperatures_and_gradient(networks: Pair) -> None:
    student, teacher = networks
    seen, kept = spied(student.roi_heads), class_logits(student)
    distillation = DetectorDistillation(student, teacher, "detached:universal@1")
    images, targets = batch()
    student(images, targets)["loss_kd"].backward()
    found = distillation.temperatures
    assert found.student.shape == (sum(distillation.counts),) == (len(kept[0]),)
    assert len(distillation.counts) == len(images)
    assert found.student.std() > 1e-3
    theirs = logits(teacher, images, seen["boxes"]).detach()
    distance = F.softmax(kept[0] / found.student[:, None], -1) - F.softmax(theirs / found.teacher[:, None], -1)
    slope = (0.9 * found.weight / found.student / len(theirs))[:, None] * distance  # of 0.9 w KL / P
    torch.testing.assert_close(kept[0].grad, slope.detach(), rtol=1e-4, atol=1e-6)


def test_a_proposal_of_weight_zero_teaches_nothing(networks: Pair) -> None:
    student, teacher = networks
    seen, kept, asked = spied(student.roi_heads), class_logits(student), []

    def shapes_alone(signals: Signals) -> Temperatures:
        asked.append(signals)
        return Temperatures(signals.full(2), signals.full(2), (signals.labels > 0).float())

    distillation = DetectorDistillation(student, teacher, shapes_alone)
    distillation.progress = 0.25
    student(*batch())["loss_kd"].backward()
    labels = torch.cat(seen["labels"])
    assert 0 < (labels > 0).sum() < len(labels)
    assert torch.equal(asked[0].labels, labels), "torchvision's own labels of these proposals"
    assert asked[0].progress == 0.25
    assert torch.equal(kept[0].grad.abs().sum(-1) > 0, labels > 0)


def test_the_detectors_own_losses_stay_as_they_are_and_removal_is_complete(networks: Pair) -> None:
    student, teacher = networks
    alone, keys = copy.deepcopy(student), list(student.state_dict())

    def losses(network: FasterRCNN) -> dict[str, Tensor]:
        torch.manual_seed(3)  # torchvision samples proposals
        return network(*batch())

    expected = losses(alone)
    distillation = DetectorDistillation(student, teacher, "fixed:4", weight=2.0)
    found = losses(student)
    assert set(found) == OWN | {"loss_kd"}
    assert all(torch.equal(found[name], expected[name]) for name in OWN)
    assert list(student.state_dict()) == keys
    alone.eval(), student.eval()
    with torch.no_grad():
        for one, other in zip(alone(batch()[0]), student(batch()[0]), strict=True):
            assert all(torch.equal(one[name], other[name]) for name in one)
    student.train()
    distillation.remove()
    assert set(losses(student)) == OWN
    DetectorDistillation(student, teacher, "fixed:4")
    assert found["loss_kd"].item() == pytest.approx(2 * losses(student)["loss_kd"].item(), rel=0.05)  # other BN state


def test_a_plain_torchvision_loop_brings_the_student_nearer_to_its_teacher(networks: Pair) -> None:
    student, teacher = networks
    before = copy.deepcopy(teacher.state_dict())
    DetectorDistillation(student, teacher, "matched:universal")
    optimizer = torch.optim.Adam(student.parameters(), 0.01)
    images, targets = batch()
    teacher.train()  # as a wrapper's train() would leave it: its statistics must not move
    found = []
    for _ in range(15):
        losses = student(images, targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        found.append(losses["loss_kd"].item())
    assert np.mean(found[-3:]) < 0.7 * np.mean(found[:3])
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_pictures_of_several_sizes_and_without_shapes_are_right(networks: Pair) -> None:
    student, teacher = networks
    images, targets = batch()
    images[0] = F.interpolate(images[0][None], (96, 80))[0]
    targets[0] = targets[0] | {"boxes": targets[0]["boxes"] * 1.25}
    targets[1] = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    distillation = DetectorDistillation(student, teacher, "universal@1")
    losses = student(images=images, targets=targets)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["loss_kd"] > 0
    assert len(distillation.counts) == len(images)


def test_half_precision_changes_no_more_than_its_rounding(networks: Pair) -> None:
    student, teacher = networks
    alike = copy.deepcopy(student)
    found = []
    for network, half in ((student, False), (alike, True)):
        distillation = DetectorDistillation(network, teacher, "universal@1")
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            found.append(network(*batch())["loss_kd"])
        assert found[-1].dtype == distillation.temperatures.student.dtype == torch.float32
    assert found[1].item() == pytest.approx(found[0].item(), rel=0.05)
    found[1].backward()


def test_a_batch_without_any_proposal_is_a_step_of_zero_and_not_of_nan(networks: Pair) -> None:
    student, teacher = networks
    student.rpn.score_thresh = 2.0  # no proposal is that sure, and no shape is there to be added
    distillation = DetectorDistillation(student, teacher, "universal@1")
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    losses = student(batch(2)[0], [empty, empty])
    sum(losses.values()).backward()
    assert distillation.counts == [0, 0]
    assert {name: losses[name].item() for name in ("loss_kd", "loss_classifier", "loss_box_reg")} == {
        "loss_kd": 0.0,
        "loss_classifier": 0.0,
        "loss_box_reg": 0.0,
    }
    assert all(p.grad is None or p.grad.isfinite().all() for p in student.parameters())


def test_class_counts_that_differ_are_named(networks: Pair) -> None:
    student, _ = networks
    DetectorDistillation(student, detector(8, seed=1, classes=5), "dtkd")
    with pytest.raises(BadInputError, match=rf"{NUM_CLASSES} classes and the teacher's 5, the background counted"):
        student(*batch())


def test_what_cannot_be_distilled_is_refused(networks: Pair) -> None:
    student, teacher = networks
    one_stage = retinanet_resnet50_fpn(weights=None, weights_backbone=None)
    for pair, said in (((one_stage, teacher), "student is a RetinaNet"), ((student, nn.Linear(2, 2)), "is a Linear")):
        with pytest.raises(BadInputError, match=said):
            DetectorDistillation(*pair, "dtkd")
    with pytest.raises(BadInputError, match="one network"):
        DetectorDistillation(student, student, "dtkd")
    with pytest.raises(BadInputError, match="weight must be finite and at least 0"):
        DetectorDistillation(student, teacher, "dtkd", weight=-1.0)
    with pytest.raises(BadInputError, match="trains without a teacher"):
        DetectorDistillation(student, teacher, "none")
    DetectorDistillation(student, teacher, "dtkd")
    DetectorDistillation(student, teacher, "fixed:4")
    with pytest.raises(BadInputError, match="remove"):
        student(*batch())


def test_boxes_enclose_their_shapes_to_the_pixel() -> None:
    random = np.random.default_rng(0)
    for label in range(1, len(SHAPES) + 1):
        _, (mask,) = scene(np.array([label]), random, 64)
        x0, y0, x1, y1 = box(mask)
        assert mask.sum() == mask[y0:y1, x0:x1].sum() > 20
        assert all(edge.any() for edge in (mask[y0, :], mask[y1 - 1, :], mask[:, x0], mask[:, x1 - 1]))
        assert abs((x1 - x0) - (y1 - y0)) <= 6, "a shape is about as wide as high"


def test_shapes_look_as_they_are_called() -> None:
    random, masks = np.random.default_rng(0), {}
    for label, name in enumerate(SHAPES, 1):
        _, found = scene(np.array([label] * 3), random, 96)
        mask = max(found, key=np.sum)  # the largest is the easiest to tell
        x0, y0, x1, y1 = box(mask)
        masks[name] = mask[y0:y1, x0:x1]
    middle = {name: mask[mask.shape[0] // 2, mask.shape[1] // 2] for name, mask in masks.items()}
    assert [name for name in SHAPES if not middle[name]] == ["ring"]
    filled = {name: mask.mean() for name, mask in masks.items()}
    assert max(filled["cross"], filled["star"]) < min(filled["square"], filled["circle"], filled["hexagon"])
    upper, lower = np.array_split(masks["triangle"], 2)
    assert upper.sum() < 0.7 * lower.sum()


def test_boxes_are_where_the_pictures_have_their_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rltemp.data.shapes.NOISE", 0.0)
    monkeypatch.setattr("rltemp.data.shapes.CONTRAST", 150.0)
    found, checked = scenes(20, seed=5), 0
    for picture, target in zip(found.images.int(), found.targets, strict=True):
        if len(target["boxes"]) != 1:
            continue
        corners = [picture[:, y, x] for y in (0, -1) for x in (0, -1)]
        slope = max((a - b).abs().max() for a in corners for b in corners)
        away = (picture - picture[:, :1, :1]).abs().amax(0) > slope + 1
        x0, y0, x1, y1 = map(int, target["boxes"][0])
        assert away[y0:y1, x0:x1].any()
        if slope < 60:
            rows, columns = away.any(1).nonzero(), away.any(0).nonzero()
            assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (x0, y0, x1, y1)
            checked += 1
    assert checked >= 1


def test_shapes_may_cover_each_other_in_part() -> None:
    random, covered = np.random.default_rng(0), 0
    for _ in range(30):
        _, masks = scene(np.array([1, 2, 3, 4]), random, 64)
        for place, mask in enumerate(masks):
            hidden = (mask & np.any([np.zeros_like(mask), *masks[place + 1 :]], axis=0)).sum() / mask.sum()
            assert hidden <= 1 - VISIBLE + 1e-9
            covered += hidden > 0.05
    assert covered > 10


def test_a_seed_is_a_data_set_with_all_classes_and_numbers_alike() -> None:
    one, again, other = scenes(50, 1), scenes(50, 1), scenes(50, 2)
    assert torch.equal(one.images, again.images)
    assert all(torch.equal(a["boxes"], b["boxes"]) for a, b in zip(one.targets, again.targets, strict=True))
    assert not torch.equal(one.images, other.images)
    labels = torch.cat([target["labels"] for target in one.targets])
    counts = torch.bincount(labels)[1:]
    assert len(counts) == len(SHAPES)
    assert counts.max() - counts.min() <= 1
    assert torch.bincount(torch.tensor([len(t["labels"]) for t in one.targets])).tolist() == [10] * (MOST + 1)


@pytest.mark.parametrize(("arguments", "said"), [((0, 1), "count"), ((3, 1, 32), "48 pixels or more")])
def test_shapes_that_cannot_be_are_refused(arguments: tuple[int, ...], said: str) -> None:
    with pytest.raises(BadInputError, match=said):
        scenes(*arguments)


def test_the_block_of_the_page_runs_as_it_stands(networks: Pair) -> None:
    student, teacher = networks
    before = copy.deepcopy(student.state_dict())
    names = run_block("detection", student=student, teacher=teacher, batches=[batch(), batch()])
    assert names["distillation"].progress == 0.5
    assert set(student(*batch())) == OWN, "the block ends with remove()"
    changed = [name for name, value in student.state_dict().items() if not torch.equal(value, before[name])]
    assert "roi_heads.box_predictor.cls_score.weight" in changed


@pytest.mark.slow
def test_the_script_measures_every_method_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    pytest.importorskip("torchmetrics", reason="the extra `detection`")
    pytest.importorskip("pycocotools", reason="the extra `detection`")
    main = run_path(str(ROOT / "scripts" / "detect.py"))["main"]
    words = f"--out {tmp_path} --images 32 --epochs 2 --teacher-images 64 --teacher-epochs 1 --held-out 20".split()
    words += ["--methods", "none", "fixed:2", "fixed:4", "dtkd"]
    main([*words, "--seeds", "1"])
    before = (tmp_path / "cells.jsonl").read_text("utf-8")
    main([*words, "--seeds", "2"])
    assert (tmp_path / "cells.jsonl").read_text("utf-8").startswith(before)
    rows = [json.loads(line) for line in (tmp_path / "cells.jsonl").read_text("utf-8").splitlines()]
    assert [(row["method"], row["seed"]) for row in rows] == [
        (method, seed) for seed in (0, 1) for method in ("none", "fixed:2", "fixed:4", "dtkd")
    ]
    found = json.loads((tmp_path / "result.json").read_text("utf-8"))["methods"]
    assert found["dtkd"]["n"] == found["dtkd"]["minus_fixed:4"]["n"] == 2
    assert "| dtkd | 2 |" in (tmp_path / "table.md").read_text("utf-8")
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--seeds", "2", "--weight", "3"])
    assert stopped.value.code == 2
