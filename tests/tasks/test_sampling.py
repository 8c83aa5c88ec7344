"""What the stages that sample share."""

import shutil
from pathlib import Path

from alignflow.generate import Response
from alignflow.models.base import identify
from alignflow.models.load import load_base
from alignflow.models.roles import SharedBase
from tasks.sampling import decode, eos_ids
from tests.tiny import EOS, SHAPE

TURNS = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def open_with_end(tiny: Path, tmp_path: Path) -> SharedBase:
    """Open the tiny model with a template that ends turns with a token that its tokenizer does not call special."""
    from transformers import AutoTokenizer

    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<end>"])
    tokenizer.chat_template = TURNS
    tokenizer.save_pretrained(folder)
    return SharedBase(
        load_base(identify(str(folder), None, converted=folder), quantization="none", dtype="float32"), SHAPE
    )


def test_the_template_s_end_of_turn_and_end_of_sequence_both_end_a_response(tiny: Path, tmp_path: Path):
    models = open_with_end(tiny, tmp_path)
    tokenizer = models.base.tokenizer
    assert set(tokenizer.convert_tokens_to_ids(["<end>", EOS])) == set(eos_ids(models))


def test_a_response_is_read_without_the_token_that_ended_it(tiny: Path, tmp_path: Path):
    models = open_with_end(tiny, tmp_path)
    tokenizer = models.base.tokenizer
    word = tokenizer("so", add_special_tokens=False)["input_ids"]
    ended = Response((*word, tokenizer.convert_tokens_to_ids("<end>")), truncated=False)
    assert decode(models, [ended, Response(tuple(word), truncated=True)]) == ["so", "so"]
