"""Stage ``prepare``: read the preferences, drop what cannot be used and count it, split by prompt, and report."""

from collections.abc import Mapping

from alignflow.models.base import load_identity
from alignflow.models.load import load_tokenizer
from tasks.data.report import digests_by_name, faults, figures, lines
from tasks.data.write import write
from tasks.paths import IDENTITY, PREPARED
from tasks.running.stage import Stage


def work(stage: Stage) -> Mapping[str, float]:
    """Write a file for each side and ``unpaired.jsonl``, with ``report.json`` and ``report.html``."""
    tokenizer, limit = load_tokenizer(load_identity(IDENTITY)), stage.params.evaluate.max_response_length
    report = write(stage.params.data, tokenizer, stage.say, limit=limit)
    stage.record.artifact(PREPARED / "report.json")
    stage.record.artifact(PREPARED / "report.html")
    stage.record.tag(digests_by_name(report))
    if found := faults(report):
        stage.record.table("data faults", found)
    for line in lines(report):
        stage.say(line)
    return figures(report)
