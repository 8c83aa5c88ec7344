"""Stage ``prepare``: read the preferences, drop and count what cannot be used, split by prompt."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from tasks.params import load
from tasks.stage import Stage, run
from tasks.workspace import IDENTITY, PREPARED


def work(stage: Stage) -> Mapping[str, float]:
    """Write ``train.jsonl``, ``judge.jsonl``, ``eval.jsonl`` and ``dropped.json``."""
    from alignflow.data.encoding import encode_prompt, encode_response
    from alignflow.data.preferences import Dropped, gate, read, split
    from alignflow.models.base import load_identity
    from alignflow.models.load import load_tokenizer

    data = stage.params.data
    path = Path(data.path)
    tokenizer = load_tokenizer(load_identity(IDENTITY))
    rows, dropped = read(path)
    total = len(rows) + len(dropped)
    fitting = []
    for row in rows:
        prompt = len(encode_prompt(tokenizer, row.messages))
        response = max(len(encode_response(tokenizer, text)) for text in (row.chosen, row.rejected) if text)
        if prompt > data.max_prompt_length:
            dropped.append(Dropped(row.number, "prompt longer than data.max_prompt_length"))
        elif response > data.max_response_length:
            dropped.append(Dropped(row.number, "response longer than data.max_response_length"))
        else:
            fitting.append(row)
    counts = gate(total, dropped, most=data.max_dropped_fraction, path=path)
    held_out = split((row.prompt for row in fitting), eval_fraction=data.eval_fraction, seed=data.seed)
    training = {row.prompt for row in fitting} - held_out
    judging = split(training, eval_fraction=data.judge_fraction, seed=data.seed + 1)
    sides = {
        "train": [row for row in fitting if row.prompt in training - judging],
        "judge": [row for row in fitting if row.prompt in judging],
        "eval": [row for row in fitting if row.prompt in held_out],
    }
    for side, kept in sides.items():
        if not kept and side != "judge":
            raise ParamsTooTight(
                f"{path}: no prompt is left for {side}; change data.eval_fraction ({data.eval_fraction})"
            )
        _write(
            PREPARED / f"{side}.jsonl",
            (
                {
                    "prompt_id": row.prompt_id,
                    "messages": row.messages,
                    "prompt": row.prompt,
                    "chosen": row.chosen,
                    "rejected": row.rejected,
                    "margin": row.margin,
                    "answer": row.answer,
                }
                for row in kept
            ),
        )
    (PREPARED / "dropped.json").write_text(json.dumps(counts, indent=2) + "\n")
    stage.say(f"{total} rows: {len(sides['train'])} to train, {len(sides['eval'])} to evaluate, {len(dropped)} dropped")
    for reason, number in counts.items():
        stage.say(f"  dropped {number}: {reason}")
    return {
        "rows": float(total),
        "dropped": float(len(dropped)),
        "train_pairs": float(len(sides["train"])),
        "judge_pairs": float(len(sides["judge"])),
        "eval_pairs": float(len(sides["eval"])),
        "chosen_shorter_fraction": sum(len(r.chosen or "") < len(r.rejected or "") for r in fitting) / len(fitting),
    }


class ParamsTooTight(ValueError):
    """A setting leaves nothing to work with."""


def _write(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


if __name__ == "__main__":
    run(
        "prepare",
        work,
        sections=["data"],
        inputs=[str(IDENTITY), load(Path("params.yaml")).data.path],
        outs=[str(PREPARED)],
    )
