"""A comparison's `report.md`: what was compared, its tables and pictures, how to read them and how to do it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rltemp.experiments.method_results import Overall, Row, seeds
from rltemp.io.files import atomic_write
from rltemp.io.versions import versions
from rltemp.report.tables import markdown_table, measures_table, overall_table

HOW_TO_READ = """\
Accuracy is the mean over seeds on test data after the last epoch, s.e. its standard error. Differences are percentage \
points, paired by seed, with 95 % bootstrap intervals over seeds (BCa, as much wider for few seeds as Student's t is; \
Student's t below 8 seeds; bold where they leave out zero), each for one comparison by itself: among many, some leave \
out zero by chance. p (Holm) is of a permutation test of the same differences, corrected by Holm's method for the \
number of arms that are compared with one baseline. Could show: the least true difference, in points, that a paired \
t test of these seeds, at 5 % divided by that number, would have shown with a power of 80 %; seeds for 0.1: how many \
seeds it needs for 0.1 points. They speak for this task and teacher only.

Beside it, means ± standard errors on test data: selected, the accuracy at the epoch whose validation accuracy was \
best (of all epochs, the first of equals), and that epoch; top-5 from 10 classes on; ECE, the expected calibration \
error in 15 bins of equal width; NLL, the negative log-likelihood; agreement, how often student and teacher predict \
the same. A student whose numbers are not finite has no ECE and no NLL, and so neither has its arm. What a step takes \
beside plain distillation is in timing.json: it is the clock's, and no result."""
FEW_SEEDS = """\
With fewer than 32 seeds the intervals cover the truth less often than they say where, now and then, a student fails."""
OVER_ALL = """\
Interquartile means over the seeds of all points, with 95 % intervals of the stratified bootstrap (Agarwal et al., \
2021), each for one comparison by itself. Accuracies of unlike tasks have little in common: look at the differences. \
They speak for these points, not for tasks in general."""


@dataclass(frozen=True)
class Section:
    """One point of a comparison.

    Args:
        task: Name of the task.
        teacher: Name of the teacher network.
        teacher_accuracy: The teacher's test accuracy, a fraction.
        student: Name of the student network.
        rows: From `table_rows`.
        picture: The picture's file name in the run's folder, or empty where none was drawn.
    """

    task: str
    teacher: str
    teacher_accuracy: float
    student: str
    rows: Sequence[Row]
    picture: str = ""

    @property
    def baseline(self) -> str:
        """The first rule that differences are taken to."""
        return next(iter(self.rows[0].differences))

    @property
    def title(self) -> str:
        """Its heading."""
        return f"{self.task}: {self.teacher} teaches {self.student}"


def write_report(
    folder: Path,
    sections: Sequence[Section],
    *,
    command: str,
    overall: Sequence[Overall] = (),
    warnings: Sequence[str] = (),
    verdict: Sequence[str] = (),
) -> Path:
    """Write `report.md`: what was compared, the tables, the pictures, how to reproduce it. Return its path.

    Args:
        folder: The run folder.
        sections: One for each point.
        command: The command line that gives these results again.
        overall: The rules over all points, where there are several.
        warnings: What a reader must not miss, a line each.
        verdict: What follows from the numbers, a line each; nothing by default.
    """
    several = len(sections) > 1
    parts = [
        f"# {'A grid of comparisons' if several else sections[0].title}",
        *([f"## Over all {len(sections)}", overall_table(overall).rstrip(), OVER_ALL] if several else []),
        *(part for section in sections for part in _of_section(section, several)),
        *warnings,
        HOW_TO_READ,
        *([FEW_SEEDS] if min(row.n for one in sections for row in one.rows) < 32 else []),
        *(["## Verdict", "\n".join(map(_item, verdict))] if verdict else []),
        f"## Reproduce\n\n```\n{command}\n```",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in versions().items()) + ".",
    ]
    path = folder / "report.md"
    atomic_write(path, ("\n\n".join(parts) + "\n").encode())
    return path


def _of_section(section: Section, several: bool) -> list[str]:
    rows, measures = section.rows, measures_table(section.rows)
    parts = [
        f"## {section.title}" if several else "",
        f"{len(rows)} rules taught `{section.student}` students on `{section.task}` ({seeds(rows)} each); the teacher, "
        f"`{section.teacher}`, has {100 * section.teacher_accuracy:.2f} % test accuracy.",
        markdown_table(rows).rstrip(),
        measures.rstrip(),
        f"![Differences in accuracy and learned temperatures]({section.picture})" if section.picture else "",
    ]
    return [part for part in parts if part]


def _item(line: str) -> str:
    """A line as an item of a Markdown list, indented as it is."""
    text = line.lstrip()
    return f"{line[: len(line) - len(text)]}- {text}"
