"""Stage ``answer@POLICY``: answer held-out prompts, as the policy and as its snapshots; see what it still knows."""

from collections.abc import Mapping
from statistics import fmean

from alignflow import distributed
from tasks.evaluation.answer_files import ANSWERS, write_answers
from tasks.evaluation.answers import answer_as, open_reference
from tasks.evaluation.kept import Kept
from tasks.evaluation.trajectory import trajectory_of
from tasks.running.hardware import peak_memory_gib
from tasks.running.stage import Stage


def work(stage: Stage) -> Mapping[str, float]:
    """Sample, measure the KL to the reference and the capability; no judge is asked."""
    policy = stage.name.partition("@")[2]
    answers, known = answer_as(stage, Kept(stage), open_reference(stage.params), policy, "validation")
    if distributed.is_main():
        trajectory = [{"step": one.step, "label": one.label} for one in trajectory_of(policy, stage.params)]
        write_answers(ANSWERS / policy, answers, trajectory, known)
    final = answers[0]
    return {
        "response_length/mean": fmean(map(len, final.tokens)),
        "truncated_fraction": fmean(final.truncated),
        "kl/reference": fmean(final.kl),
        **known,
        "peak_memory_gib": peak_memory_gib(),
    }
