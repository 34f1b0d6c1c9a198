"""Answers in JSON of a real program."""

from __future__ import annotations

import pytest

from benchmarks.bench_grammar import is_json_of, package_model
from benchmarks.random_schemas import KINDS, random_schema
from llava_runner.serve.grammar import json_processor


@pytest.mark.parametrize("kind", KINDS)
def test_a_package_answers_in_json_of_the_schema(tiny_package, kind):
    model = package_model(tiny_package.folder)
    for seed in range(3):
        schema = random_schema(kind, seed=seed)
        process = json_processor(model.tokenizer, eos_ids=model.eos_ids, vocab_size=model.vocab_size, schema=schema)
        assert is_json_of(schema, model.ask(process, seed))
