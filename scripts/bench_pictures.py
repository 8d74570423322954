"""A folder of pictures that is read from the disk, beside the loop of torchvision's reference: time and memory.

    python scripts/bench_pictures.py --pictures 20000 --folder build/bench-pictures

Both loops take the same pictures, networks, batches and processes that read, and distil at one temperature of 4. Epochs
alternate, so that a machine that is busy is busy for both; the ratio is of the medians. Memory is the proportional set
size of the process and of those that read for it, at its largest, of a run of `rltemp distill` by itself.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.transforms import v2

from rltemp import Task, load_method
from rltemp.models.networks import seeded_model
from rltemp.training.distill import Distillation
from rltemp.training.preparation import load_data, prepare

CLASSES, SIDE, TEST_SHARE = 10, 256, 20
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def write_pictures(folder: Path, count: int) -> None:
    """JPEG files of 256 pixels, smooth with a little noise: about as many bytes as photographs have."""
    for number in range(count):
        generator = np.random.default_rng(number)
        part = "val" if number % TEST_SHARE == 0 else "train"
        file = folder / part / f"class{number // TEST_SHARE % CLASSES}" / f"{number:06d}.jpg"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8))
            pixels = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC)).astype(np.int16)
            noisy = pixels + generator.integers(-12, 13, pixels.shape)
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, quality=85)


def reference(options: argparse.Namespace) -> Iterator[int]:
    """Epochs of torchvision's references/classification with a teacher beside it; yields the pictures of each."""
    transforms = [v2.RandomResizedCrop(options.image_size), v2.RandomHorizontalFlip(), v2.PILToTensor()]
    compose = v2.Compose([*transforms, v2.ToDtype(torch.float, scale=True), v2.Normalize(MEAN, STD)])
    data = datasets.ImageFolder(options.folder / "train", compose)
    settings = {"batch_size": options.batch_size, "num_workers": options.data_workers, "drop_last": True}
    loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(data, shuffle=True, **settings)
    student, teacher = network(options, 0), network(options, 1).eval()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    while True:
        seen = 0
        for images, labels in loader:
            with torch.inference_mode():
                target = (teacher(images) / 4).softmax(-1)
            logits = student(images)
            soft = 16 * F.kl_div((logits / 4).log_softmax(-1), target, reduction="batchmean")
            loss = 0.1 * F.cross_entropy(logits, labels) + 0.9 * soft
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()
            loss.item()  # the reference logs it in every step
            seen += len(labels)
        yield seen


def ours(options: argparse.Namespace) -> Iterator[int]:
    """Epochs of a run as `rltemp distill` takes them."""
    task = Task.of(
        student=options.network,
        teacher=network(options, 1),
        train=f"imagefolder:{options.folder}",
        epochs=options.epochs,
        batch_size=options.batch_size,
        **pictures(options),
    )
    run = Distillation(prepare(task, dataset=load_data(task, workers=options.data_workers)), 0)
    method = run.attach(load_method("fixed:4"))
    while True:
        for _ in range(run.steps_per_epoch):
            run.update(method.loss(run.observe()), watched=[])
        yield run.steps_per_epoch * options.batch_size


def network(options: argparse.Namespace, seed: int) -> nn.Module:
    """Student and teacher differ in their seeds."""
    return seeded_model(options.network, (3, options.image_size, options.image_size), CLASSES, seed)


def pictures(options: argparse.Namespace) -> dict[str, Any]:
    """As the ImageNet recipe has them, at another size."""
    resize = round(options.image_size * 256 / 224)
    return {"image_size": options.image_size, "resize": resize, "augment": "crop+mirror", "normalise": "imagenet"}


def times(options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds for a thousand pictures, epoch by epoch in turn; the first of each only warms up."""
    loops = {"reference": reference(options), "rltemp": ours(options)}
    found: dict[str, list[float]] = {name: [] for name in loops}
    for epoch in range(options.epochs):
        for name, loop in loops.items():
            started = time.perf_counter()
            count = next(loop)
            found[name].append(1000 * (time.perf_counter() - started) / count)
            print(f"epoch {epoch} {name}: {found[name][-1]:.2f} s for 1,000 pictures", flush=True)
    return {name: values[1:] for name, values in found.items()}


def memory(options: argparse.Namespace) -> float:
    """GiB of a run of one epoch, with the processes that read for it."""
    words = [f"--{name.replace('_', '-')}={value}" for name, value in pictures(options).items()]
    words += [f"--task=imagefolder:{options.folder}", f"--student={options.network}", f"--teacher={options.network}"]
    weights, out = (options.folder.parent / name for name in ("bench-teacher.pth", "bench-run"))
    torch.save(network(options, 1).state_dict(), weights)
    words += [
        f"--batch-size={options.batch_size}",
        "--epochs=1",
        "--fresh",
        f"--teacher-weights={weights}",
        f"--out={out}",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "rltemp", "distill", *words, f"--data-workers={options.data_workers}"]
    )
    largest = 0
    while process.poll() is None:
        largest = max(largest, sum(map(proportional, family(process.pid))))
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"rltemp distill ended with {process.returncode}")
    return largest / 2**20


def family(parent: int) -> list[int]:
    """A process and its children."""
    try:
        return [parent, *map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())]
    except OSError:
        return []


def proportional(process: int) -> int:
    """Of its memory, in KiB; what processes share counts once for all of them."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def main() -> int:
    """Write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("build/bench-pictures"), help="made where it is missing")
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=6, help="of each loop; the first is not counted")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--network", default="cnn:8", help="student and teacher")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--data-workers", type=int, default=2)
    parser.add_argument("--only", choices=["time", "memory"])
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    write_pictures(options.folder, options.pictures)
    if options.only != "time":
        print(f"rltemp distill: {memory(options):.2f} GiB at its largest, for one epoch")
    if options.only != "memory":
        found = {name: statistics.median(values) for name, values in times(options).items()}
        print(f"medians {found}; rltemp / reference = {found['rltemp'] / found['reference']:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
