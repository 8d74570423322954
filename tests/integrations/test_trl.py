"""The integrations of TRL's trainers, against the trainers themselves: their losses are those of a plain loop."""

from __future__ import annotations

from pathlib import Path
from runpy import run_path
from typing import Any

import pytest
import torch
from support.hosts import OF_HOSTS, ROOT, run_block
from support.tiny import llama, prompts, tokenizer
from support.trainers import assert_own, assert_trained, logged, own_losses, settings, soft_loss
from torch import Tensor, nn

import rltemp
from rltemp import BadInputError, Method, Signals
from rltemp.integrations import HostVersionWarning, contract
from rltemp.integrations.trainers import TAGS
from rltemp.integrations.trl import DistillationTrainerMixin, GKDTrainerMixin

trl = pytest.importorskip("trl", reason="the host is not installed: pip install rltemp[trl]")
gkd = pytest.importorskip("trl.experimental.gkd")
Dataset = pytest.importorskip("datasets").Dataset

pytestmark = OF_HOSTS

METHODS = ["universal", "dtkd"]
STEPS, ACCUMULATE = 4, 2
OPTIONS = {"max_steps": STEPS, "gradient_accumulation_steps": ACCUMULATE, "bf16": False}
DIVERGENCE = {0.0: "kl", 1.0: "reverse_kl", 0.5: "jensen_shannon"}
"""Ours by the host's beta."""


class Recorded:
    """Keeps what the host computes its losses of: on-policy, so the run's own, which no other loop would draw."""

    seen: tuple[dict[str, Any], ...] = ()


class Distiller(DistillationTrainerMixin, trl.DistillationTrainer):
    """What a user writes."""


class RecordedDistiller(Recorded, Distiller):
    def _compute_loss(self, student: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any) -> Any:
        self.seen = (*self.seen, {**inputs, "num_items": num_items_in_batch})
        return super()._compute_loss(student, inputs, num_items_in_batch)


class GKDDistiller(GKDTrainerMixin, gkd.GKDTrainer):
    """What a user writes."""


class RecordedGKD(Recorded, GKDDistiller):
    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        self.seen = (*self.seen, {**inputs, "num_items": kwargs["num_items_in_batch"]})
        return super().compute_loss(model, inputs, *args, **kwargs)


def conversations(count: int = 24) -> Any:
    answers = [" ".join(f"w{i + k}" for k in range(2 + i % 4)) for i in range(count)]
    turns = [
        [{"role": "user", "content": f"w{i} w{i + 1}"}, {"role": "assistant", "content": answer}]
        for i, answer in enumerate(answers)
    ]
    return Dataset.from_dict({"messages": turns})


def distiller(
    folder: Path, base: type = RecordedDistiller, student: Any = None, teacher: Any = None, **more: Any
) -> Any:
    controller = more.pop("controller", "universal")
    return base(
        model=student or llama(0),
        teacher_model=teacher or llama(1, 32),
        controller=controller,
        args=trl.DistillationConfig(**settings(folder, **OPTIONS | more, max_completion_length=6)),
        train_dataset=prompts(),
        processing_class=tokenizer(),
    )


def gkd_distiller(folder: Path, base: type = RecordedGKD, student: Any = None, **more: Any) -> Any:
    controller = more.pop("controller", "universal")
    return base(
        model=student or llama(0),
        teacher_model=llama(1, 32),
        controller=controller,
        args=gkd.GKDConfig(**settings(folder, **OPTIONS | more, max_new_tokens=6, max_length=32)),
        train_dataset=conversations(),
        processing_class=tokenizer(),
    )


def signals_of(student: nn.Module, inputs: dict[str, Any], progress: float) -> Signals:
    """What either host's loss is of: the logits that predict a completion's tokens."""
    if "completion_ids" in inputs:
        ids, mask = (torch.cat([inputs[f"prompt_{name}"], inputs[f"completion_{name}"]], 1) for name in ("ids", "mask"))
        labels, kept = inputs["completion_ids"], inputs["completion_mask"].bool()
        where = slice(-labels.shape[1] - 1, -1)
    else:
        ids, mask, labels = inputs["input_ids"], inputs["attention_mask"], inputs["labels"][:, 1:]
        kept, where = labels != -100, slice(None, -1)
    with torch.no_grad():
        theirs = llama(1, 32)(input_ids=ids, attention_mask=mask).logits[:, where]
    ours = student(input_ids=ids, attention_mask=mask).logits[:, where]
    return Signals(ours, theirs, labels, progress, kept)


@pytest.mark.parametrize(("name", "beta"), [("universal", 0.0), ("universal", 0.5), ("dtkd", 0.0), ("dtkd", 1.0)])
@pytest.mark.parametrize("make", [distiller, gkd_distiller])
def test_a_run_has_the_losses_of_our_own_loop_and_not_of_a_fixed_rule(make, name, beta, tmp_path) -> None:
    trainer = make(tmp_path, controller=name, beta=beta)
    trainer.train()
    assert len(trainer.seen) == STEPS * ACCUMULATE

    def loop(method: Method) -> list[float]:
        return own_losses(llama(0), trainer.seen, signals_of, soft_loss(method, DIVERGENCE[beta]), ACCUMULATE)

    assert_own(logged(trainer), name, loop)


@pytest.mark.parametrize("make", [distiller, gkd_distiller])
def test_means_of_the_tokens_temperatures_are_logged(make: Any, tmp_path: Path) -> None:
    trainer = make(tmp_path, max_steps=1)
    trainer.train()
    found = []
    for inputs in trainer.seen:
        signals = signals_of(llama(0), inputs, 0.0)
        temperatures = rltemp.load_rule("universal")(signals)
        entropies = [
            torch.distributions.Categorical(logits=logits).entropy()
            for logits in (signals.student_logits, signals.teacher_logits)
        ]
        answers = temperatures.student, temperatures.teacher, temperatures.weight
        assert temperatures.guarded is not None
        rows = torch.stack([*answers, temperatures.guarded.float(), *entropies])
        found.append(rows[:, signals.mask])
    wanted = torch.cat(found, 1).mean(1).tolist()
    assert [logged(trainer, tag) for tag in TAGS] == [[pytest.approx(value, rel=1e-4)] for value in wanted]


def drawn(rows: int, vocabulary: int) -> tuple[list[Any], Tensor, Tensor]:
    """What the host gives its kernel, and the rows' tokens and mask."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    student, teacher = (
        (normal(rows, 8).requires_grad_(), normal(vocabulary, 8)),
        (normal(rows, 6), normal(vocabulary, 6)),
    )
    arguments = [*student, None, *teacher, None, 0.0, 1.0, 2.0, None, 0.5, None]
    return arguments, torch.randint(0, vocabulary, (rows,), generator=generator), torch.arange(rows) % 3 > 0


def test_temperatures_found_chunk_by_chunk_are_those_of_all_tokens(tmp_path: Path) -> None:
    trainer = distiller(tmp_path, controller="dtkd")
    arguments, tokens, kept = drawn(40, 64)
    trainer.tokens_per_chunk = 7
    found, changed = trainer._tempered(tokens, kept, arguments)
    logits = 2.0 * arguments[0] @ arguments[1].T, 0.5 * arguments[3] @ arguments[4].T
    wanted = trainer.controller.temperatures(*logits, mask=kept)
    for name in ("student", "teacher", "weight"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name), rtol=1e-5, atol=1e-6)
    tempered = 2.0 * changed[0] @ changed[1].T
    torch.testing.assert_close(tempered, logits[0] / wanted.student.unsqueeze(-1), rtol=1e-5, atol=1e-5)
    compact, _ = trainer._tempered(
        tokens, kept, [arguments[0][kept], *arguments[1:3], arguments[3][kept], *arguments[4:]]
    )
    torch.testing.assert_close(compact.student, wanted.student[kept], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_has_the_peak_memory_of_the_hosts_own(name: str, tmp_path: Path) -> None:
    trainer = distiller(tmp_path, controller=name)
    arguments, tokens, kept = drawn(256, 4000)
    trainer.tokens_per_chunk = 64
    arguments[1].requires_grad_()
    kernel = trl.trainer.distillation_trainer.ChunkedDivergenceFunction
    peak_memory = run_path(str(ROOT / "scripts/bench.py"))["peak_memory"]

    def host() -> None:
        kernel.apply(*arguments)[0].sum().backward()

    def ours() -> None:
        found, changed = trainer._tempered(tokens, kept, arguments)
        (found.weight * kernel.apply(*changed)[0]).sum().backward()

    chunk = 4 * 64 * 4000  # bytes of its logits, however many tokens there are
    most = {"universal": 10, "dtkd": 6}[name]  # gradient matching compares both networks at two temperatures
    assert 2 * chunk < peak_memory(lambda: trainer._tempered(tokens, kept, arguments)) < most * chunk
    assert peak_memory(ours) < 1.02 * peak_memory(host)


@pytest.mark.parametrize(("change", "has"), [("bias", "a bias"), ("softcap", "a soft cap"), ("weight", "no weights")])
@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_a_head_whose_rows_cannot_be_scaled_names_the_way_out(whose: str, change: str, has: str, tmp_path) -> None:
    models = {"student": llama(0), "teacher": llama(1, 32)}
    model = models[whose]
    if change == "bias":
        model.lm_head.bias = nn.Parameter(torch.ones(model.config.vocab_size))
    elif change == "softcap":
        model.config.final_logit_softcapping = 30.0
    trainer = distiller(tmp_path, **models)
    if change == "weight":  # as DeepSpeed's ZeRO-3 leaves it between uses
        arguments, tokens, kept = drawn(4, 64)
        arguments[1 if whose == "student" else 4] = torch.zeros(0)
        with pytest.raises(BadInputError, match=rf"{whose}'s output head has {has}.*GKDTrainerMixin"):
            trainer._tempered(tokens, kept, arguments)
        return
    with pytest.raises(BadInputError, match=rf"{whose}'s output head has {has}.*GKDTrainerMixin"):
        trainer.train()


def test_after_a_run_and_after_an_error_the_host_has_its_own_kernel(tmp_path: Path) -> None:
    module = trl.trainer.distillation_trainer
    kernel = module.ChunkedDivergenceFunction
    student = llama(0)
    student.lm_head.bias = nn.Parameter(torch.ones(student.config.vocab_size))
    with pytest.raises(BadInputError):
        distiller(tmp_path, student=student).train()
    assert module.ChunkedDivergenceFunction is kernel


def test_vocabularies_or_a_mask_that_do_not_fit_are_one_clear_error(tmp_path: Path) -> None:
    trainer = distiller(tmp_path)
    arguments, tokens, kept = drawn(6, 64)
    with pytest.raises(BadInputError, match="student has 64 class outputs, teacher 60"):
        trainer._tempered(tokens, kept, [*arguments[:4], arguments[4][:60], *arguments[5:]])
    trainer = gkd_distiller(tmp_path)
    logits, labels = torch.zeros(2, 3, 8), torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(BadInputError, match="student has 8 class outputs, teacher 9"):
        trainer.generalized_jsd_loss(logits, torch.zeros(2, 3, 9), labels)
    with pytest.raises(BadInputError, match=r"labels have shape \(2, 2\), needed: \(2, 3\)"):
        trainer.generalized_jsd_loss(logits, logits, labels[:, 1:])


def test_a_host_that_computes_its_loss_elsewhere_is_an_error(tmp_path: Path) -> None:
    class Elsewhere(Distiller):
        def _compute_loss(self, *args: Any) -> Any:
            return trl.DistillationTrainer._compute_loss(self, *args)

    with pytest.raises(BadInputError, match=r"without a temperature.*trl.*>=1\.16,<1\.17"):
        distiller(tmp_path, Elsewhere).train()

    class OtherGKD(GKDDistiller):
        generalized_jsd_loss = staticmethod(gkd.GKDTrainer.generalized_jsd_loss)

    with pytest.raises(BadInputError, match="without a temperature"):
        gkd_distiller(tmp_path, OtherGKD).train()


def test_a_version_that_was_not_tested_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "version", lambda host: "2.0.0")
    for make in (distiller, gkd_distiller):
        with pytest.warns(HostVersionWarning, match=r"trl 2\.0\.0 is installed.*1\.16"):
            make(tmp_path)


def test_the_block_of_the_page_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"student": llama(0), "teacher": llama(1, 32), "tokenizer": tokenizer(), "train_dataset": prompts(16)}
    assert_trained(run_block("trl", **names)["trainer"])
