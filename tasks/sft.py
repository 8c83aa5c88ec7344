"""Stage ``sft``: fine-tune on the chosen responses; the result is where every method starts and its reference."""

from collections.abc import Mapping

from tasks.running.stage import Stage, run


def work(stage: Stage) -> Mapping[str, float]:
    """Train the first policy, or write an adapter that changes nothing when ``sft.enabled`` is false."""
    from alignflow.algorithms import sft
    from alignflow.data.collate import collate, micro_batches
    from alignflow.data.encoding import encode_prompt, encode_response
    from alignflow.loops.offline import train
    from alignflow.optim import MasterAdamW, OptimisationConfig
    from alignflow.types import Example, Sequences
    from tasks.training.models import config_of, finish, open_models, read_demonstrations, rows_of_step, tokens_of

    section = stage.params.sft
    config = config_of(section, OptimisationConfig)
    models = open_models(stage.params)
    models.add("policy", trained=True, seed=section.seed)

    if section.enabled:
        tokenizer = models.base.tokenizer
        examples = [
            Example(encode_prompt(tokenizer, row["messages"]), encode_response(tokenizer, row["chosen"]))
            for row in read_demonstrations("train")
        ]
        lengths = [len(e.prompt) + len(e.response) for e in examples]

        def batches(step: int, budget: int) -> list[Sequences]:
            rows = rows_of_step(len(examples), config, step)
            groups = micro_batches(lengths, rows, budget)
            return [collate([examples[i] for i in group]).to(models.base.device) for group in groups]

        stage.total_steps = section.steps
        train(
            batches,
            lambda batch: sft.step(models, batch),
            sft.count,
            tokens_of,
            MasterAdamW(
                [(models.parameters("policy"), config.learning_rate)],
                config.weight_decay,
                kind=stage.params.memory.optimizer,
            ),
            config,
            log=stage.log,
            announce=stage.announce,
            keep=stage.keep,
            resume=stage.resume,
        )
    else:
        stage.say("sft.enabled is false: every method starts from the base model")
    return finish(stage, models, "policy", frozen={})


if __name__ == "__main__":
    run(
        "sft",
        work,
        sections=["base", "lora", "memory", "sft"],
        inputs=["artifacts/base", "data/prepared"],
        outs=["artifacts/sft"],
        shared=True,
    )
