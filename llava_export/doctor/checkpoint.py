"""Examines a checkpoint: what an export would use from where, and what is doubtful about it. Nothing is written."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from llava_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from llava_export.checkpoint.processor import Processor, check_question
from llava_export.checkpoint.prompt import Prompt, find_prompt, stop_ids
from llava_export.checkpoint.weights import CheckpointTensor
from llava_export.doctor.doubts import doubts
from llava_export.doctor.findings import Fact, Finding, Report, broken, doubtful, note
from llava_export.doctor.values import check_values
from llava_export.doctor.words import ends_text, sampling_text
from llava_export.errors import CheckpointError, SeveralReasons
from llava_export.families.language_models import LANGUAGE_MODELS
from llava_export.models.names import PROJECTOR, VISION_TOWER, is_in
from llava_export.pte.export import model_card
from llava_export.pte.golden import golden_question
from llava_export.pte.options import Options
from llava_export.pte.plan import Plan, plan_for
from llava_export.pte.preflight import shortages
from llava_export.system import readable_size
from llava_runner.errors import UserError
from llava_runner.tokenizer import UNKNOWN_PIECE

KIND = "checkpoint"
MAX_NAMED = 8  # added tokens in a row of facts, before it counts the rest


def examine_checkpoint(
    model: str,
    *,
    parts: Mapping[str, str | None],
    prompt_template: str | None = None,
    reads_weights: bool = False,
    on_tensor: Callable[[str], None] = lambda key: None,
) -> Report:
    """Return what an export of a checkpoint would use, and what is wrong with it or doubtful.

    ``model``, ``parts`` and ``prompt_template`` are those of an export. With ``reads_weights``, all values are looked
    at, and ``on_tensor`` is called with the key of each tensor.
    """
    try:
        checkpoint = open_checkpoint(model, **parts)
    except UserError as error:
        reasons = error.reasons if isinstance(error, SeveralReasons) else (str(error),)
        return Report.of(model, KIND, findings=[broken(reason) for reason in reasons])
    facts, findings = list(_model_facts(checkpoint)), []
    prompt = plan = None
    try:
        prompt = find_prompt(checkpoint, given=prompt_template)
    except CheckpointError as error:
        findings.append(broken(f"its chat template cannot be followed: {error}", "Choose one with --prompt-template."))
    if prompt is not None:
        facts += _text_facts(checkpoint, prompt)
        findings += doubts(checkpoint, prompt)
        try:
            plan = plan_for(checkpoint, Options(prompt_template=prompt_template))
            agreed, problem = _compared(plan)
            facts += [*_export_facts(plan), Fact("compared with", agreed)]
            findings += [problem] if problem else []
        except UserError as error:
            findings.append(doubtful(f"llava export refuses it as it is: {error}", "Export it with other options."))
    if plan is not None:
        remedy = "Export on a larger machine, or end other programs; --force exports nevertheless."
        findings += [doubtful(lacking, remedy) for lacking in shortages(plan.estimate, output_dir=Path())]
    if reads_weights:
        findings += check_values(checkpoint, on_tensor=on_tensor)
    return Report.of(model, f"{KIND}, {checkpoint.family.name}", facts=facts, findings=findings)


def tensors_of(checkpoint: Checkpoint) -> list[CheckpointTensor]:
    """Return the tensors that a checkpoint's model is made of."""
    return checkpoint.weights.tensors(checkpoint.build_model(max_context_len=1))


def _compared(plan: Plan) -> tuple[str, Finding | None]:
    """Return which library reads the golden question as an export does, and what is wrong if it does not."""
    checkpoint = plan.checkpoint
    question = golden_question(checkpoint, card=model_card(plan), chat_template=plan.prompt.jinja)
    remedy = "Choose another --prompt-template, mend the tokenizer's files, or export with --force."
    try:
        agreed = check_question(
            Processor.open(checkpoint),
            texts=question.texts,
            ids=(question.ids_before, question.ids_after),
            question=checkpoint.family.question,
            chat_template=plan.prompt.jinja,
            adds_bos=checkpoint.tokenizer.rules.adds_bos,
        )
    except CheckpointError as error:
        return "no other library agrees", broken(str(error), remedy)
    if agreed:
        return f"{agreed}: the same prompt and tokens", None
    return "nothing", note(
        "nothing else has read its prompt: transformers is not installed, or the checkpoint has no processor for it",
        "pip install transformers, if the checkpoint has a processor_config.json.",
    )


def _model_facts(checkpoint: Checkpoint) -> Iterator[Fact]:
    """Yield what the model is made of."""
    config, weights = checkpoint.config, checkpoint.weights
    text, vision, projector = config.text, config.vision, config.projector
    assert vision is not None and projector is not None
    layout = "llava-hf's" if checkpoint.family.tower_key is None else "its authors'"
    yield Fact("family", f"{checkpoint.family.name}, {layout} layout", "config.json")
    if checkpoint.parts or checkpoint.source != checkpoint.name:
        yield Fact("parts", checkpoint.source, ", ".join(checkpoint.parts.values()))
    tensors = tensors_of(checkpoint)
    types = Counter(str(weights.dtype(tensor)).removeprefix("torch.") for tensor in tensors)
    size = sum(math.prod(tensor.shape) * weights.dtype(tensor).itemsize for tensor in tensors)
    stored = " and ".join(f"{count} {name}" for name, count in types.most_common())
    yield Fact("weights", f"{stored} tensors, {readable_size(size)}", _files(checkpoint, tensors))
    heads = f"{text.num_attention_heads} heads"
    if text.num_key_value_heads != text.num_attention_heads:
        heads += f" ({text.num_key_value_heads} of keys and values)"
    window = f", a window of {text.sliding_window}" if text.sliding_window is not None else ""
    yield Fact(
        "language model",
        f"{LANGUAGE_MODELS[text.model_type].name}, {text.num_hidden_layers} layers of {text.hidden_size}, {heads}, "
        f"{text.vocab_size} tokens, {text.max_position_embeddings} positions{window}",
        "config.json",
    )
    for name, part, value in (
        (
            "vision tower",
            VISION_TOWER,
            f"{vision.num_used_layers} of {vision.num_hidden_layers} layers of {vision.hidden_size} used, images of "
            f"{vision.image_size} pixels, {config.num_image_tokens} positions each",
        ),
        ("projector", PROJECTOR, f"{projector.type}, to {projector.out_features}"),
    ):
        yield Fact(name, value, _files(checkpoint, [tensor for tensor in tensors if is_in(tensor.fqn, part)]))
    source = checkpoint.images.source
    for folder in checkpoint.own_folders:
        source = source.replace(f"{folder}/", "")
    yield Fact("images", checkpoint.images.text(), source)
    yield Fact("sampling", sampling_text(checkpoint.generation), _source(checkpoint, "generation_config.json"))


def _text_facts(checkpoint: Checkpoint, prompt: Prompt) -> Iterator[Fact]:
    """Yield how text is read and where answers end."""
    yield Fact("prompt", repr(prompt.example()), prompt.source)
    tokenizer = checkpoint.tokenizer
    basic = {tokenizer.text(i) for i in (tokenizer.bos_id, tokenizer.eos_id)} | {UNKNOWN_PIECE}
    added = [token.content for token in tokenizer.rules.added_tokens if token.content not in basic]
    named = ", ".join(added[:MAX_NAMED]) + (f" and {len(added) - MAX_NAMED} more" if len(added) > MAX_NAMED else "")
    yield Fact(
        "tokens",
        f"{tokenizer.vocab_size} in {checkpoint.config.text.vocab_size} rows; added: {named or 'none'}",
        tokenizer.source,
    )
    ends = ends_text(checkpoint.config.bos_id, stop_ids(prompt, checkpoint), spelled=tokenizer.text)
    yield Fact("begin and ends", ends, "config, tokenizer, prompt")


def _export_facts(plan: Plan) -> Iterator[Fact]:
    """Yield what an export with the default options takes, and what its program takes."""
    needed, recipe = plan.estimate, plan.options.recipe.name
    yield Fact(
        "an export",
        f"takes {readable_size(needed.memory)} of memory and {readable_size(needed.disk)} of disk",
        f"recipe {recipe}",
    )
    yield Fact(
        "its program",
        f"{readable_size(needed.program)}, and {readable_size(needed.device_memory)} of memory to run",
        f"a context of {plan.max_context_len}",
    )


def _files(checkpoint: Checkpoint, tensors: list[CheckpointTensor]) -> str:
    """Return the files that tensors are read from, as text: names in the checkpoint's folder, and paths elsewhere."""
    paths = list(dict.fromkeys(checkpoint.weights.file_of(tensor) for tensor in tensors))
    base = checkpoint.own_folders[-1]
    names = [path.name if path.parent == base else str(path) for path in paths]
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "") if names else ""


def _source(checkpoint: Checkpoint, name: str) -> str:
    """Return the name of a file if the checkpoint has it, or that nothing says it."""
    return name if checkpoint.file(name) else f"no {name}"
