"""Does a policy get better while runs of two processes learn it through one service? Numbers and a plot.

    python scripts/online.py --out runs/online

Starts `rltemp serve --learn` and processes of `rltemp distill --controller URL --learn`, keeps every version that is
published, and lets each of some versions teach the same students, whom nothing was learned from. A point is the mean
over students of the paired difference to version 1, with its 95 % interval.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rltemp.data.problem import Problem
from rltemp.data.tasks import load_task
from rltemp.experiments.statistics import paired_difference
from rltemp.experiments.students import train_method
from rltemp.io.files import atomic_write
from rltemp.io.versions import processor
from rltemp.policy.policy_file import read_policy
from rltemp.remote.http_client import HttpClient
from rltemp.report.drawing import BLUE, GREY, save_png
from rltemp.training.preparation import prepare

MODEL = "online"
RLTEMP = (sys.executable, "-m", "rltemp")


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, by default the process's own, and do it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder; what is there is not done again")
    parser.add_argument("--task", default="digits")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--runs", type=int, default=40, help="of each process")
    parser.add_argument("--replicas", type=int, default=16, help="students of a run")
    parser.add_argument("--points", type=int, default=8, help="versions that are evaluated beside the first")
    parser.add_argument("--seeds", type=int, default=64, help="students of each, paired")
    parser.add_argument("--first-seed", type=int, default=2000)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    problem = prepare(load_task(options.task))  # the processes find the teacher in the cache
    versions = options.out / "versions"
    if not versions.exists():
        learn(options)
    files = {int(file.stem): file for file in sorted(versions.glob("*.safetensors"))}
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    accuracy = evaluate(problem, {version: files[version] for version in chosen(sorted(files), options.points)}, seeds)
    gains = {version: paired_difference(100 * row, 100 * accuracy[1]) for version, row in accuracy.items()}
    students = {version: read_policy(files[version]).manifest.provenance["runs_learned_from"] for version in gains}
    found = [
        {"version": version, "students": int(students[version]), "accuracy": 100 * float(accuracy[version].mean())}
        | {"mean": gain.mean, "low": gain.low, "high": gain.high}
        for version, gain in gains.items()
    ]
    learned = json.loads((options.out / "learned.json").read_text())
    about = {"machine": processor(), "torch": torch.__version__, "first_seed": seeds.start}
    text = json.dumps({**learned, **about, "points": found}, indent=1)
    atomic_write(options.out / "online.json", (text + "\n").encode())
    plot(found, options)
    for point in found:
        line = "version {version} of {students} students: {accuracy:.2f} %, {mean:+.2f} [{low:+.2f}, {high:+.2f}]"
        print(line.format(**point))


def learn(options: argparse.Namespace) -> None:
    """Start the service and the processes, and keep every version until the processes are done."""
    kept = options.out / "kept"
    started = time.monotonic()
    with service(options.out, options.processes * options.replicas * 2) as url:
        client = HttpClient(url)
        words = ["--controller", url, "--learn", "--rule", MODEL, "--task", options.task]
        words += ["--runs", str(options.runs), "--replicas", str(options.replicas)]
        running = [
            subprocess.Popen(
                [
                    *RLTEMP,
                    "distill",
                    *words,
                    "--seed",
                    str(1000 * place),
                    "--out",
                    str(options.out / f"process-{place}"),
                ],
                stdout=subprocess.DEVNULL,
            )
            for place in range(options.processes)
        ]
        while any(process.poll() is None for process in running):
            keep(client, kept)
            time.sleep(0.1)
        keep(client, kept)
    if any(process.returncode for process in running):
        raise SystemExit("a process failed; what it said is above")
    learned = {
        "processes": options.processes,
        "runs": options.processes * options.runs,
        "students": options.processes * options.runs * options.replicas,
        "seconds": round(time.monotonic() - started, 1),
    }
    (options.out / "learned.json").write_text(json.dumps(learned))
    kept.rename(options.out / "versions")


@contextlib.contextmanager
def service(out: Path, students_per_update: int) -> Iterator[str]:
    """A service on a free port that learns, until the end; gives its URL."""
    out.mkdir(parents=True, exist_ok=True)
    words = ("serve", "--port", "0", "--learn", MODEL, "--state", str(out / "state"))
    process = subprocess.Popen(
        [*RLTEMP, *words, "--learning.students-per-update", str(students_per_update)],
        stdout=subprocess.PIPE,
        stderr=(out / "service.log").open("wb"),
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if " at http" not in line:
            raise SystemExit(f"the service did not start; see {out / 'service.log'}")
        yield line.rsplit(" at ", 1)[1].strip()
    finally:
        process.terminate()
        process.wait(30)


def keep(client: HttpClient, folder: Path) -> None:
    """Keep the newest version's policy file, where it is not kept yet."""
    answer = client.request("GET", f"/v2/models/{MODEL}/policy", seconds=60.0)
    file = folder / f"{int(answer.headers['rltemp-model-version']):06d}.safetensors"
    if not file.exists():
        atomic_write(file, answer.body)


def chosen(versions: Sequence[int], points: int) -> list[int]:
    """The first version, and about so many others up to the last, evenly spaced."""
    places = np.unique(np.linspace(0, len(versions) - 1, points + 1).round().astype(int))
    return [versions[place] for place in places]


def evaluate(problem: Problem, files: Mapping[int, Path], seeds: Sequence[int]) -> dict[int, NDArray[np.float64]]:
    """Test accuracy `[S]` of the students of given seeds under each version."""
    stack = problem.stack_size
    return {version: train_method(problem, str(file), seeds, stack).test_accuracy for version, file in files.items()}


def plot(found: Sequence[dict[str, Any]], options: argparse.Namespace) -> None:
    """Draw the gains over the students that were learned from."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    students, means, low, high = np.array([[one[k] for k in ("students", "mean", "low", "high")] for one in found]).T
    axes.axhline(0, color=GREY, linewidth=1)
    axes.errorbar(students, means, [means - low, high - means], marker="o", capsize=3, color=BLUE)
    axes.set_xlabel(f"students of {options.processes} processes that were learned from")
    axes.set_ylabel("test accuracy minus version 1\n(points, 95 % interval)")
    axes.set_title(f"{options.task}: {options.seeds} students that nothing was learned from", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    save_png(options.out / "online.png", figure)


if __name__ == "__main__":
    main()
