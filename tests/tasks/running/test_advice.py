"""What a user is told to change after an error of the core."""

import importlib
import re

import pytest

from alignflow.data.rows import DataError
from alignflow.memory import DoesNotFit
from alignflow.sampling.vllm import VLLMError, VLLMUnavailable
from tasks.running.advice import ADVICE, explained
from tests.pipeline import read_yaml


@pytest.mark.parametrize("name", ADVICE)
def test_the_table_names_errors_that_exist_and_keys_that_exist(name: str):
    module, _, kind = name.rpartition(".")
    error = getattr(importlib.import_module(module), kind)
    assert issubclass(error, ValueError)
    assert error.__module__ == module
    params = read_yaml("params.yaml")
    for section, key in re.findall(r"\b([a-z_]{2,})\.([a-z_]+)\b", ADVICE[name]):
        assert key in params[section], f"{section}.{key}"


def test_advice_follows_the_message():
    said = explained(DoesNotFit("memory ran out on 9 tokens"))
    assert said.startswith("memory ran out on 9 tokens; set memory.gradient_checkpointing: true")
    assert explained(VLLMUnavailable("no device")) == "no device; set sampling.engine: own to do without it"


def test_a_kind_of_an_error_has_the_advice_of_the_error():
    class Larger(DoesNotFit):
        pass

    assert explained(Larger("x")).startswith("x; set memory.")


def test_an_error_without_advice_is_told_as_it_is():
    assert explained(VLLMError("broke off")) == "broke off"
    assert explained(DataError("row 3: empty")) == "row 3: empty"
