"""What the stages that sample share: responses of a role with their texts."""

from collections.abc import Sequence

from alignflow.data.encoding import end_of_turn
from alignflow.generate import Response, generate
from alignflow.models.roles import SharedBase
from tasks.params import Params


def sample(
    models: SharedBase, role: str, prompts: Sequence[tuple[int, ...]], params: Params, *, seed: int
) -> tuple[list[Response], list[str]]:
    """Sample one response to each prompt as a role; return tokens and texts."""
    with models.merged(role) as model:
        responses = generate(
            model,
            prompts,
            eos_ids=eos_ids(models),
            max_response_length=params.sampling.max_response_length,
            temperature=params.sampling.temperature,
            seed=seed,
            rows=params.sampling.rows,
        )
    return responses, decode(models, responses)


def eos_ids(models: SharedBase) -> list[int]:
    """Return every token that ends a response: the chat template's, the tokenizer's, and the generation settings'."""
    tokenizer = models.base.tokenizer
    configured = models.base.model.generation_config.eos_token_id
    more = configured if isinstance(configured, list) else [configured]
    return sorted({end_of_turn(tokenizer), tokenizer.eos_token_id, *(i for i in more if i is not None)})


def decode(models: SharedBase, responses: Sequence[Response]) -> list[str]:
    """Return the texts of responses, without special tokens and without the one that ended them."""
    tokens = [list(r.tokens if r.truncated else r.tokens[:-1]) for r in responses]
    texts: list[str] = models.base.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return [text.strip() for text in texts]


def completions(
    prompts: Sequence[str], texts: Sequence[str], scores: Sequence[float | None], most: int = 16
) -> list[dict[str, object]]:
    """Return the first few samples as rows of a table."""
    rows = zip(prompts[:most], texts[:most], scores[:most], strict=True)
    return [{"prompt": p, "response": t, "reward": None if s is None else round(s, 3)} for p, t, s in rows]
