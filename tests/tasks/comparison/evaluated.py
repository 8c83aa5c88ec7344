"""What the stages before the comparison leave, small enough to calculate by hand."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from alignflow.evaluation.win_rates import Resampling
from tasks.comparison.compute import compare
from tasks.comparison.results import Comparison, Method
from tasks.stages import TRAINING

ROUNDS = ("round-1", "round-2")
METHOD = Method(Resampling(samples=500, confidence=0.95, seed=3), length_ridge=0.1, kl_levels=2)
PROMPTS = 40
SHORT = 10
"""Prompts that snapshots answer."""
POLICIES = ("base", "reference", "dpo", "iterative_dpo", "ppo", "grpo")
WINS = {
    "base": (8, 20, 20),
    "dpo": (30, 30, 30),
    "iterative_dpo": (32, 30, 20),
    "ppo": (22, 20, 20),
    "grpo": (36, 4, 30),
}
"""Prompts of 40 on which a policy beats the reference: by reward model, second reward model and rule."""
COSTS = {
    "sft": (60.0, 4000, 1.25),
    "dpo": (90.0, 8000, 1.5),
    "iterative_dpo/round-1": (40.0, 3000, 1.75),
    "iterative_dpo/round-2": (50.5, 3500, 1.625),
    "ppo": (200.0, 6000, 2.0),
    "grpo": (180.0, 9000, 1.875),
}
HOSTILE = '</p><script>alert("x")</script><img src=http://example.org/a.png onerror=alert(1)> & {{ 7 * 7 }}'
REPORT = {
    "accuracy": 0.8,
    "low": 0.7,
    "high": 0.87,
    "pairs": 80,
    "margins": [0.5] * 80,
    "by_margin": [
        {"low": 0.0, "high": 1.0, "pairs": 50, "accuracy": 0.7},
        {"low": 1.0, "high": None, "pairs": 30, "accuracy": 0.95},
    ],
    "by_length_difference": [
        {"low": None, "high": 0.0, "pairs": 80, "accuracy": 0.8},
        {"low": 0.0, "high": None, "pairs": 0, "accuracy": None},
    ],
    "calibration": [{"probability": 0.6, "observed": 0.55, "pairs": 80}],
    "calibration_error": 0.05,
    "length_correlation": -0.2,
    "shorter_wins": 0.6,
}


def answers(policy: str, **changed: object) -> list[dict[str, object]]:
    """The reference scores 0 and is judged 0 and 0.5; a win is +1, +2 and 0.75, a loss -1, -2 and 0.25."""
    won = WINS.get(policy)
    rows: list[dict[str, object]] = []
    for i in range(PROMPTS):
        score, judge, rule = (0, 0, 0) if won is None else (1 if i < wins else -1 for wins in won)
        rows.append(
            {
                "prompt_id": f"p{i:02d}",
                "sample": 0,
                "prompt": f"Question {i}?",
                "response": f"{policy} answers {i}: {HOSTILE}",
                "score": float(score),
                "judges": {"judge_model": 2.0 * judge, "concise_answer": 0.5 + 0.25 * rule},
                "kl": 0.0 if policy == "reference" else 2.0,
                "response_length": 20 + i % 2,
                "truncated": i % 10 == 0,
                "repetition": 0.1,
                "language": "en",
                "prompt_language": "en",
                "outcome": None,
                **changed,
            }
        )
    return rows


def trajectory(**ends: tuple[float, float, float, float]) -> list[dict[str, object]]:
    """Snapshots by label, all prompts alike: KL, score, second reward model and rule."""
    return [
        {
            "step": 4 * (i + 1),
            "label": label,
            "kl": [kl] * SHORT,
            "score": [score] * SHORT,
            "judges": {"judge_model": [judge] * SHORT, "concise_answer": [rule] * SHORT},
            "response_length": [20] * SHORT,
        }
        for i, (label, (kl, score, judge, rule)) in enumerate(ends.items())
    ]


TRAJECTORIES = {
    "dpo": trajectory(half=(1.0, 0.5, 0.5, 0.6), end=(4.0, 1.0, 1.0, 0.7)),
    "iterative_dpo": trajectory(one=(1.0, 0.8, 0.4, 0.5), two=(4.0, 1.6, 0.8, 0.5)),
    "ppo": trajectory(half=(4.0, 0.2, 0.0, 0.5), end=(9.0, 0.4, 0.0, 0.5)),
    "grpo": trajectory(half=(1.0, 1.0, 1.0, 0.6), end=(4.0, 2.0, -1.0, 0.8)),
}
"""GRPO's second reward model falls from +1 to -1 while its score rises from 1 to 2."""


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_answers(root: Path, policy: str, rows: Iterable[Mapping[str, object]]) -> None:
    path = root / "evaluations" / policy / "responses.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def write_judgements(root: Path, rows: Iterable[Mapping[str, object]]) -> None:
    (root / "judgements").mkdir(exist_ok=True)
    (root / "judgements" / "llm.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def quality(**changed: object) -> dict[str, object]:
    figures = {
        "kl/temperature": 0.7,
        "distinct_1": 0.3,
        "distinct_2": 0.7,
        "capability/perplexity": 14.0,
        "capability/multiple_choice": 0.5,
    }
    return {**figures, "score/mean": 0.1, **changed}


def build(root: Path) -> Path:
    """Write everything that the comparison reads; PPO's answers backwards."""
    for policy in POLICIES:
        write_answers(root, policy, answers(policy)[::-1] if policy == "ppo" else answers(policy))
        write(root / "evaluations" / policy / "trajectory.json", TRAJECTORIES.get(policy, []))
        write(root / "metrics" / "evaluate" / f"{policy}.json", quality())
    write(root / "artifacts" / "reward_model" / "report.json", REPORT)
    write(root / "artifacts" / "judge_model" / "report.json", REPORT)
    for stage, (seconds, tokens, memory) in COSTS.items():
        numbers = {"train_seconds": seconds, "trained_tokens": tokens, "peak_memory_gib": memory, "loss": 0.4}
        write(root / TRAINING / f"{stage}.json", numbers)
        path = root / "plots" / f"{stage}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["step", "loss", "rewards/accuracy"])
            writer.writerows([[1, 0.7, 0.5], [2, 0.6, ""], [3, 0.5, 0.8]])
    write_judgements(root, [])
    return root


def compared(root: Path, policies: Sequence[str] = POLICIES) -> Comparison:
    return compare(root, policies, ROUNDS, METHOD)
