"""What a policy still knows: fixed questions with choices, and unseen chosen responses."""

from collections.abc import Callable
from pathlib import Path

from alignflow.data.collate import collate
from alignflow.data.encoding import encode_prompt, encode_response
from alignflow.evaluation.capability import choice_accuracy, encode_choices, perplexity, read_question
from alignflow.loops.by_rows import by_rows
from alignflow.memory import Budget
from alignflow.models.roles import SharedBase
from alignflow.types import Example
from tasks.data.prepared import read_lines, read_prepared, whole_answers
from tasks.params.sections import Evaluate


def capability(
    models: SharedBase, role: str, section: Evaluate, budget: Budget, tell: Callable[[float], None]
) -> dict[str, float]:
    """Return the accuracy on the fixed questions and the perplexity of unseen chosen responses, in one pass."""
    tokenizer = models.base.tokenizer
    path = Path(section.capability_path)
    lines = enumerate(read_lines(path), start=1)
    questions = [read_question(line, f"{path}, line {number}") for number, line in lines]
    choices = [choice for question in questions for choice in encode_choices(tokenizer, question)]
    good = [
        Example(encode_prompt(tokenizer, row["messages"]), encode_response(tokenizer, row["chosen"]))
        for row in whole_answers(read_prepared("validation"))
        if row["chosen"] is not None
    ][: section.capability_texts]
    logps = by_rows(
        lambda batch: models.logprobs(role, batch)[0].sum(1),
        collate([*choices, *good]),
        budget,
        tell=tell,
    ).tolist()
    end, lengths = len(choices), [len(example.response) for example in (*choices, *good)]
    accuracy = {"capability/multiple_choice": choice_accuracy(logps[:end], lengths[:end], questions)}
    return {**accuracy, "capability/perplexity": perplexity(logps[end:], lengths[end:])} if good else accuracy
