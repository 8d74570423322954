"""A folder of pictures that is read from the disk, beside the loop of torchvision's reference: time and memory.

    python scripts/bench_pictures.py --pictures 20000 --folder build/bench-pictures

Both loops take the same pictures, networks, batches and processes that read, and distil at one temperature of 4. Epochs
alternate, so that a machine that is busy is busy for both; the ratio is of the medians. Memory is that of a run of
`rltemp distill` by itself: of the process and of those that read for it together, at its largest, as resident set size
(what they share counts for each) and as proportional set size (it counts once).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
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

from rltemp import load_method
from rltemp.data.tasks import load_task
from rltemp.models.networks import seeded_model
from rltemp.training.distill import Distillation
from rltemp.training.guards import RunGuard
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
    """Epochs of torchvision's references/classification, with a teacher; yields 0, then the pictures of each."""
    transforms = [v2.RandomResizedCrop(options.image_size), v2.RandomHorizontalFlip(), v2.PILToTensor()]
    compose = v2.Compose([*transforms, v2.ToDtype(torch.float, scale=True), v2.Normalize(MEAN, STD)])
    data = datasets.ImageFolder(options.folder / "train", compose)
    settings = {"batch_size": options.batch_size, "num_workers": options.data_workers, "drop_last": True}
    loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(data, shuffle=True, **settings)
    student, teacher = network(options, 0), network(options, 1).eval()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    yield 0  # it is ready
    while True:
        seen = 0
        for images, labels in loader:
            with torch.no_grad():
                target = (teacher(images) / 4).softmax(-1)
            logits = student(images)
            soft = 16 * F.kl_div((logits / 4).log_softmax(-1), target, reduction="batchmean")
            loss = 0.1 * F.cross_entropy(logits, labels) + 0.9 * soft
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            loss.item()  # the reference logs it in every step
            seen += len(labels)
        yield seen


def ours(options: argparse.Namespace) -> Iterator[int]:
    """Epochs of a run in the steps of `rltemp distill`, guards included; yields 0, then the pictures of each."""
    task = load_task(
        f"imagefolder:{options.folder}",
        student=options.network,
        teacher=options.network,
        teacher_weights=str(teacher_file(options)),
        epochs=options.epochs,
        batch_size=options.batch_size,
        **pictures(options),
    )
    run = Distillation(prepare(task, dataset=load_data(task, workers=options.data_workers)), 0)
    method, guard = run.attach(load_method("fixed:4")), RunGuard()
    yield 0
    while True:
        for _ in range(run.steps_per_epoch):
            guard.step(run, method)
        yield run.steps_per_epoch * options.batch_size


def teacher_file(options: argparse.Namespace) -> Path:
    """Weights of a teacher that nobody has trained: its time is a trained one's."""
    file: Path = options.folder.parent / "bench-teacher.pth"
    torch.save(network(options, 1).state_dict(), file)
    return file


def network(options: argparse.Namespace, seed: int) -> nn.Module:
    """Student and teacher differ in their seeds."""
    return seeded_model(options.network, (3, options.image_size, options.image_size), CLASSES, seed)


def pictures(options: argparse.Namespace) -> dict[str, Any]:
    """As the ImageNet recipe has them, at another size."""
    resize = round(options.image_size * 256 / 224)
    return {"image_size": options.image_size, "resize": resize, "augment": "crop+mirror", "normalise": "imagenet"}


def times(options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Seconds for a thousand pictures, epoch by epoch in turn: by the wall, and of all processors together."""
    loops = {"reference": reference(options), "rltemp": ours(options)}
    found: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in loops} for kind in ("wall", "processor")}
    for loop in loops.values():
        next(loop)
    for epoch in range(options.epochs):
        for name, loop in loops.items():
            started = time.perf_counter(), processor_seconds()
            count = next(loop)
            spent = time.perf_counter() - started[0], processor_seconds() - started[1]
            for kind, seconds in zip(found, spent, strict=True):
                found[kind][name].append(1000 * seconds / count)
            said = ", ".join(f"{kind} {values[name][-1]:.2f} s" for kind, values in found.items())
            print(f"epoch {epoch} {name}: {said} for 1,000 pictures", flush=True)
    return found


def processor_seconds() -> float:
    """Of this process, its children, and those that have ended."""
    own = os.times()
    ticks = 0
    for child in family(os.getpid())[1:]:
        with contextlib.suppress(OSError):  # it has just ended
            ticks += sum(map(int, Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return own.user + own.system + own.children_user + own.children_system + ticks / os.sysconf("SC_CLK_TCK")


def memory(options: argparse.Namespace) -> dict[str, float]:
    """GiB of a run of one epoch, with the processes that read for it, by the names of `/proc`."""
    words = [f"--{name.replace('_', '-')}={value}" for name, value in pictures(options).items()]
    words += [f"--task=imagefolder:{options.folder}", f"--student={options.network}", f"--teacher={options.network}"]
    words += [f"--teacher-weights={teacher_file(options)}", f"--data-workers={options.data_workers}"]
    words += [f"--batch-size={options.batch_size}", "--epochs=1"]
    largest = {"Rss": 0, "Pss": 0}
    with tempfile.TemporaryDirectory() as out:  # a run that is done would not be trained again
        process = subprocess.Popen([sys.executable, "-m", "rltemp", "distill", *words, f"--out={out}/run"])
        while process.poll() is None:
            found = {name: sum(kibibytes(one, name) for one in family(process.pid)) for name in largest}
            largest = {name: max(value, found[name]) for name, value in largest.items()}
            time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"rltemp distill ended with {process.returncode}")
    return {name: value / 2**20 for name, value in largest.items()}


def family(parent: int) -> list[int]:
    """A process and its children."""
    try:
        return [parent, *map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())]
    except OSError:
        return []


def kibibytes(process: int, name: str) -> int:
    """Of its memory."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)


def main() -> int:
    """Write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("build/bench-pictures"), help="made where it is missing")
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=5, help="of each loop")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument(
        "--network", default="mlp:8", help="student and teacher: small, so that reading is what takes time"
    )
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--data-workers", type=int, default=2)
    parser.add_argument("--only", choices=["time", "memory"])
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    write_pictures(options.folder, options.pictures)
    if options.only != "time":
        print(
            "GiB of rltemp distill at its largest:", {name: round(value, 2) for name, value in memory(options).items()}
        )
    if options.only != "memory":
        for kind, found in times(options).items():
            medians = {name: statistics.median(values) for name, values in found.items()}
            print(f"{kind}: medians {medians}; rltemp / reference = {medians['rltemp'] / medians['reference']:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
