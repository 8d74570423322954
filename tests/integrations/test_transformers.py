"""The integration of `transformers.Trainer`, against the trainer itself: its losses are those of a plain loop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from support.hosts import OF_HOSTS, ROOT, run_block
from support.tiny import llama
from support.trainers import (
    KINDS,
    STEPS,
    Distiller,
    arguments,
    assert_own,
    assert_trained,
    classifier,
    images,
    logged,
    own_losses,
    texts,
    trained,
)
from torch import Tensor, nn

import rltemp
from rltemp import BadInputError, Method, Signals
from rltemp.integrations import HostVersionWarning, contract

transformers = pytest.importorskip("transformers", reason="the host is not installed: pip install rltemp[transformers]")

pytestmark = OF_HOSTS
METHODS = ["universal", "dtkd"]


def signals_of(teacher: nn.Module, student: nn.Module, batch: dict[str, Tensor], progress: float) -> Signals:
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    ours, labels = student(**inputs).logits, batch["labels"]
    with torch.no_grad():
        theirs = teacher(**inputs).logits
    if labels.dim() == 2:
        ours, theirs, labels = ours[:, :-1], theirs[:, :-1], labels[:, 1:]
    return Signals(ours, theirs, labels, progress, labels != -100)


def test_batches_that_bring_the_teachers_top_train_as_the_teacher_does(tmp_path: Path) -> None:
    teacher = llama(1, 32).eval()
    items = []
    for item in texts():
        with torch.no_grad():
            logits = teacher(**{name: row[None] for name, row in item.items() if name != "labels"}).logits[0]
        top = rltemp.SparseTeacher.of_logits(logits, logits.shape[-1])
        items.append(item | {"teacher_ids": top.ids, "teacher_log_probs": top.log_probs, "teacher_tail": top.tail})
    runs = [(teacher, texts()), (None, items)]
    found = []
    for number, (model, data) in enumerate(runs):
        settings = arguments(tmp_path / str(number), remove_unused_columns=False)
        collate = transformers.default_data_collator
        trainer = Distiller(
            model=llama(0),
            teacher_model=model,
            controller="fixed:2",
            train_dataset=data,
            data_collator=collate,
            args=settings,
        )
        trainer.train()
        found.append(logged(trainer))
    assert found[1] == pytest.approx(found[0], abs=1e-3)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("name", METHODS)
def test_a_run_has_the_losses_of_our_own_loop_and_not_of_a_fixed_rule(name, kind, accumulate, tmp_path) -> None:
    trainer, batches = trained(kind, tmp_path, accumulate, controller=name)
    model = KINDS[kind][0]
    teacher, seen = model(1, 32).eval(), batches[: accumulate * STEPS]  # the loader may be ahead

    def loop(method: Method) -> list[float]:
        return own_losses(model(0).train(), seen, partial(signals_of, teacher), method.loss, accumulate)

    assert_own(logged(trainer), name, loop, after=1)


def test_means_of_training_temperatures_are_logged_without_evaluation(tmp_path: Path) -> None:
    trainer, batches = trained("tokens", tmp_path, controller="universal")
    rule = rltemp.load_rule("universal")
    first = signals_of(llama(1, 32), llama(0), batches[0], 0.0)
    found = rule(first)
    for name in ("student", "teacher", "weight"):
        wanted = getattr(found, name)[first.mask].mean().item()
        assert logged(trainer, f"temperature/{name}_mean")[0] == pytest.approx(wanted, rel=1e-5)
    assert len(logged(trainer, "temperature/student_mean")) == STEPS
    trainer.args.max_steps, trainer.args.logging_steps = 4, 3
    trainer.args.eval_strategy, trainer.args.eval_steps, trainer.eval_dataset = "steps", 2, texts(8)
    trainer.train()
    tagged = {entry["step"] for entry in trainer.state.log_history if "temperature/student_mean" in entry}
    evaluated = {entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry}
    assert (tagged, evaluated) == ({3}, {2, 4})


def test_the_loss_of_an_evaluation_is_the_methods_at_the_end_of_the_run(tmp_path: Path) -> None:
    trainer, _ = trained("images", tmp_path, controller="dtkd")
    found = trainer.evaluate(images(8))["eval_loss"]
    batch = transformers.default_data_collator(images(8))
    signals = signals_of(trainer.teacher_model, trainer.model, batch, 1.0)
    assert found == pytest.approx(rltemp.load_method("dtkd").loss(signals).mean().item(), abs=1e-5)


def test_the_teacher_neither_trains_nor_drops_out(tmp_path: Path) -> None:
    teacher = llama(1, 32, attention_dropout=0.5).train()
    before = [value.clone() for value in teacher.parameters()]
    trained("tokens", tmp_path, teacher=teacher)
    assert not teacher.training
    assert all(value.grad is None and not value.requires_grad for value in teacher.parameters())
    assert all(torch.equal(*pair) for pair in zip(before, teacher.parameters(), strict=True))


def test_classes_that_differ_are_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"student has 5 class outputs, teacher 7 \(shapes \(4, 5\) and \(4, 7\)\)"):
        trained("images", tmp_path, teacher=classifier(1, classes=7))


def test_labels_that_are_missing_or_of_another_shape_are_one_clear_error(tmp_path: Path) -> None:
    trainer, batches = trained("tokens", tmp_path)
    batch = batches[0]
    with pytest.raises(BadInputError, match=r"no `labels`.*attention_mask"):
        trainer.compute_loss(trainer.model, {name: value for name, value in batch.items() if name != "labels"})
    with pytest.raises(BadInputError, match=r"labels have shape \(4, 7\), needed: \(4, 8\)"):
        trainer.compute_loss(trainer.model, {**batch, "labels": batch["labels"][:, 1:]})


def test_a_second_loss_beside_the_methods_is_refused(tmp_path: Path) -> None:
    models = {"model": llama(0), "teacher_model": llama(1)}
    for options, more in (
        (arguments(tmp_path, label_smoothing_factor=0.1), {}),
        (arguments(tmp_path), {"compute_loss_func": min}),
    ):
        with pytest.raises(BadInputError, match="neither compute_loss_func nor label_smoothing_factor"):
            Distiller(**models, args=options, **more)


def test_a_rule_that_nothing_would_train_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="'ctkd' has parameters to learn, which this host would not train"):
        Distiller(model=llama(0), teacher_model=llama(1), controller="ctkd", args=arguments(tmp_path))


def test_a_version_that_was_not_tested_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "version", lambda host: "6.0.0")
    with pytest.warns(HostVersionWarning, match=r"transformers 6\.0\.0 is installed.*5\.23"):
        Distiller(model=llama(0), teacher_model=llama(1), args=arguments(tmp_path))


PROGRAM = """
import json
import sys
from pathlib import Path

from support.trainers import logged, trained

trainer, _ = trained("tokens", Path(sys.argv[1]), controller="dtkd")
if trainer.is_world_process_zero():
    Path(sys.argv[1], "losses.json").write_text(json.dumps(logged(trainer)))
"""


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one_that_accumulates_two_batches(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, "utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [*launch, str(program), str(tmp_path)], check=True, env={**os.environ, "PYTHONPATH": path}, timeout=300
    )
    alone, _ = trained("tokens", tmp_path, accumulate=2, controller="dtkd")
    assert json.loads((tmp_path / "losses.json").read_text()) == pytest.approx(logged(alone), abs=1e-5)


def test_the_block_of_the_page_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"student": classifier(0), "teacher": classifier(1, 32), "train_dataset": images(16)}
    assert_trained(run_block("transformers", **names)["trainer"])
