"""Distil a small Faster R-CNN on rendered shapes under several temperature rules, and compare mean average precision.

    python scripts/detect.py --out runs/detect

trains a teacher, then a student for every seed and method. The students of one seed share initial weights, batches
and pictures, so methods are compared in pairs. The same command goes on where it stopped, with more `--seeds` or
`--methods` too. Every student is a line of cells.jsonl; result.json and table.md sum them up. Needs the extra
`detection` (torchmetrics, pycocotools).
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

from rltemp.data.shapes import NUM_CLASSES, Scenes, scenes
from rltemp.errors import BadInputError, RltempError, TrainingDivergedError
from rltemp.experiments.statistics import mean_and_error, paired_difference, points
from rltemp.integrations.detection import DetectorDistillation
from rltemp.io.files import add_json_line, atomic_write, json_lines
from rltemp.io.versions import processor
from rltemp.loading import load_method
from rltemp.report.tables import markdown, with_error

NONE, PLAIN, FIXED = "none", "fixed:4", "fixed:"
METHODS = (NONE, "fixed:1", "fixed:2", PLAIN, "fixed:8", "dtkd", "universal", "matched:dtkd", "matched:universal")
STUDENT = {"width": 8, "depth": 1, "hidden": 64, "points": 1}
TEACHER = {"width": 24, "depth": 3, "hidden": 128, "points": 2}
SEEDS = {"teacher": 1, "train": 2, "validation": 3, "test": 4}
"""Of the pictures; no two splits share one."""
MEASURES = ("test_map", "test_map_50", "validation_map", "seconds")

Runs = list[dict[str, Any]]
"""What was measured of each student."""


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, by default the process's own, and do it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the teacher, the students' results and the tables"
    )
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="as `rltemp methods` names them")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=768, help="that students learn from")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--teacher-images", type=int, default=4096)
    parser.add_argument("--teacher-epochs", type=int, default=8)
    parser.add_argument("--held-out", type=int, default=300, help="pictures of validation and of test, each")
    parser.add_argument("--weight", type=float, default=0.1, help="of loss_kd beside the detector's own losses")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    try:
        run(options)
    except RltempError as error:
        print(f"detect.py: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def run(options: argparse.Namespace) -> None:
    """Train what is missing, student by student, and write the tables after each."""
    for method in options.methods:
        load_method(method)  # a wrong name is known before anything is trained
    options.out.mkdir(parents=True, exist_ok=True)
    held_out = {split: scenes(options.held_out, SEEDS[split]) for split in ("validation", "test")}
    setting, teacher = prepare(options, held_out["test"])
    data, file = scenes(options.images, SEEDS["train"]), options.out / "cells.jsonl"
    runs = json_lines(file)
    done = {(run["method"], run["seed"]) for run in runs}
    for seed, method in itertools.product(range(options.seeds), options.methods):
        if (method, seed) not in done:
            runs.append(run_of(method, seed, teacher, data, held_out, options))
            add_json_line(file, runs[-1])
            write(options.out, setting, runs)
    write(options.out, setting, runs)
    print((options.out / "table.md").read_text("utf-8"))


def prepare(options: argparse.Namespace, test: Scenes) -> tuple[dict[str, Any], FasterRCNN]:
    """The setting, which must be that of the folder, and the teacher, trained where the folder has none."""
    names = ("images", "epochs", "teacher_images", "teacher_epochs", "held_out", "weight")
    asked = {name: getattr(options, name) for name in names} | {"student": STUDENT, "teacher": TEACHER}
    file, weights = options.out / "setting.json", options.out / "teacher.safetensors"
    teacher = detector(**TEACHER)
    if file.is_file() and weights.is_file():
        setting = json.loads(file.read_text("utf-8"))
        if any(setting[name] != value for name, value in asked.items()):
            raise BadInputError(f"{options.out} holds results of another setting, {setting}; asked for: {asked}")
        teacher.load_state_dict(load_file(weights))
        return setting, teacher
    torch.manual_seed(0)
    teacher = detector(**TEACHER)
    train(teacher, scenes(options.teacher_images, SEEDS["teacher"]), options.teacher_epochs, learning_rate=0.003)
    setting = asked | {"processor": processor(), "torch": torch.__version__}
    setting |= {f"teacher_{name}": value for name, value in evaluate(teacher, test).items()}
    atomic_write(weights, save(teacher.state_dict()))
    atomic_write(file, json.dumps(setting, indent=2).encode())
    return setting, teacher


def run_of(
    method: str, seed: int, teacher: FasterRCNN, data: Scenes, held_out: dict[str, Scenes], options: argparse.Namespace
) -> dict[str, Any]:
    """Train one student and measure it."""
    torch.manual_seed(1000 + seed)
    student = detector(**STUDENT)
    distillation = None if method == NONE else DetectorDistillation(student, teacher, method, options.weight)
    started = time.process_time()
    train(student, data, options.epochs, learning_rate=0.004, distillation=distillation)
    found: dict[str, Any] = {"method": method, "seed": seed, "seconds": round(time.process_time() - started, 1)}
    if distillation is not None:
        distillation.remove()
    for split, pictures in held_out.items():
        found |= {f"{split}_{name}": value for name, value in evaluate(student, pictures).items()}
    return found


def detector(width: int, depth: int, hidden: int, points: int) -> FasterRCNN:
    """A Faster R-CNN for pictures of 64 pixels.

    It has one feature map, a quarter as wide, of `2 * width` channels, and pools 5 x 5 values from it for a proposal,
    each from `points` x `points` places.
    """
    channels = 2 * width
    shapes = [(3, width, 2), (width, channels, 2), *[(channels, channels, 1)] * depth]
    backbone = nn.Sequential(
        *(
            nn.Sequential(nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU(inplace=True))
            for i, o, stride in shapes
        )
    )
    backbone.out_channels = channels  # type: ignore[assignment]  # where torchvision looks for it
    return FasterRCNN(
        backbone,
        min_size=64,
        max_size=64,
        image_mean=[0.5] * 3,
        image_std=[0.25] * 3,
        rpn_anchor_generator=AnchorGenerator(((8, 13, 20),), ((1.0,),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 5, points),
        box_head=TwoMLPHead(channels * 25, hidden),
        box_predictor=FastRCNNPredictor(hidden, NUM_CLASSES),
        rpn_pre_nms_top_n_train=200,
        rpn_post_nms_top_n_train=60,
        rpn_pre_nms_top_n_test=100,
        rpn_post_nms_top_n_test=30,
        rpn_batch_size_per_image=64,
        box_batch_size_per_image=32,
        box_detections_per_img=20,
    )


def train(
    network: FasterRCNN,
    data: Scenes,
    epochs: int,
    learning_rate: float,
    distillation: DetectorDistillation | None = None,
    batch_size: int = 16,
) -> None:
    """Train in place: AdamW, one cycle of the learning rate, whole batches in an order that the global seed sets."""
    network.train()
    order = torch.cat([torch.randperm(len(data))[: len(data) // batch_size * batch_size] for _ in range(epochs)])
    batches = torch.split(order, batch_size)
    optimizer = torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, len(batches) + 1, pct_start=0.1)
    for step, places in enumerate(batches):
        if distillation is not None:
            distillation.progress = step / len(batches)
        loss = torch.stack(list(network(*data.batch(places)).values())).sum()
        if not loss.isfinite():
            raise TrainingDivergedError(f"the loss is {loss.item()} at step {step} of {len(batches)}")
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        schedule.step()


def evaluate(network: FasterRCNN, data: Scenes) -> dict[str, float]:
    """COCO's mean average precision, over overlaps of 0.5 to 0.95 and at 0.5, in percent."""
    from torchmetrics.detection import MeanAveragePrecision

    network.eval()
    metric = MeanAveragePrecision()
    with torch.no_grad():
        for places in torch.split(torch.arange(len(data)), 64):
            images, targets = data.batch(places)
            metric.update(network(images), targets)
    found = metric.compute()
    return {name: round(100 * found[name].item(), 3) for name in ("map", "map_50")}


def write(out: Path, setting: dict[str, Any], runs: Runs) -> None:
    """What the results sum up to."""
    best, found = summary(runs)
    result = {"setting": setting, "best_fixed": best, "methods": found}
    atomic_write(out / "result.json", json.dumps(result, indent=2, default=asdict).encode())
    atomic_write(out / "table.md", table(setting, best, found).encode())


def summary(measured: Runs) -> tuple[str, dict[str, dict[str, Any]]]:
    """The best fixed T; every method's means with errors, and its differences from no teacher, T = 4 and the best T.

    The best T has the highest mean on the validation pictures, over the seeds that all T have (T = 4 where none was
    trained); the differences are on the test pictures, over the seeds that both methods have.
    """
    by_method: dict[str, dict[int, dict[str, Any]]] = {}
    for run in measured:
        by_method.setdefault(run["method"], {})[run["seed"]] = run
    grid = {method: found for method, found in by_method.items() if method.startswith(FIXED)}
    common = set.intersection(*map(set, grid.values())) if grid else set()
    best = max(grid, key=lambda method: sum(grid[method][seed]["validation_map"] for seed in common), default=PLAIN)
    rows: dict[str, dict[str, Any]] = {}
    for method, found in by_method.items():
        rows[method] = {"n": len(found)}
        rows[method] |= {name: mean_and_error([run[name] for run in found.values()]) for name in MEASURES}
        for base in {NONE, PLAIN, best} & by_method.keys() - {method}:
            seeds = sorted(found.keys() & by_method[base].keys())
            first, second = ([runs[seed]["test_map"] for seed in seeds] for runs in (found, by_method[base]))
            if seeds:
                rows[method][f"minus_{base}"] = paired_difference(first, second)
    return best, rows


def table(setting: dict[str, Any], best: str, found: dict[str, dict[str, Any]]) -> str:
    """The summary as Markdown."""
    bases = list(dict.fromkeys((NONE, PLAIN, best)))
    head = ["method", "n", "mAP", "mAP at 0.5", *(f"- {base}" for base in bases), "validation mAP"]
    body = []
    for method, row in found.items():
        pairs = [points(row[name]) if (name := f"minus_{base}") in row else "" for base in bases]
        means = [with_error(*row[name]) for name in ("test_map", "test_map_50")]
        body.append([method, str(row["n"]), *means, *pairs, f"{row['validation_map'][0]:.2f}"])
    return (
        f"Teacher: mAP {setting['teacher_map']:.1f}, at 0.5 {setting['teacher_map_50']:.1f}; loss_kd at weight "
        f"{setting['weight']:g}. Test mAP in percent, mean ± standard error over n students; differences in points, "
        f"paired by seed, with 95 % intervals. Best fixed T on the validation pictures: {best}. "
        f"{setting['processor']}, one thread, torch {setting['torch']}.\n\n{markdown(head, body)}"
    )


if __name__ == "__main__":
    main()
