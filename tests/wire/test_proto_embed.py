"""Embeddings and models in protobuf."""

from __future__ import annotations

import base64
import json
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxyd.errors import ProxyError
from proxyd.wire._pb import chat_pb2 as pb
from proxyd.wire.proto_embed import (
    FLOAT16,
    FLOAT32,
    INT8,
    embeddings,
    embeddings_json,
    embeddings_message,
    embeddings_request,
    models,
    vector,
)
from tests.wire.corpus import load
from tests.wire.pb_samples import sample, status_of

VALUES = [-0.5, 0.261, 0.022, -0.217, -0.456, 0.305, 0.066, -0.173]


def answer(*vectors: object, **more) -> bytes:
    return json.dumps(
        {"object": "list", "data": [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)], **more}
    ).encode()


@pytest.mark.parametrize(
    "body",
    [
        {"model": "m", "input": ["a", "b"], "dimensions": 256, "user": "u"},
        {"model": "m", "input": [[1, 2], [3]]},
        {"model": "m", "input": ["a"], "encoding_format_x": "y"},
        {"model": "m", "input": [[]]},
        {"input": [1.5]},
        {"model": "", "input": [""]},
        {"dimensions": 0},
    ],
)
def test_a_json_request_comes_back(body: dict) -> None:
    assert json.loads(embeddings_request(embeddings_message(json.dumps(body).encode()).SerializeToString()).body) == body


def test_one_text_and_one_list_of_ids_are_lists_of_one() -> None:
    assert embeddings_request(embeddings_message(b'{"input":"a"}').SerializeToString()).body == b'{"input":["a"]}'
    assert embeddings_request(embeddings_message(b'{"input":[1,2]}').SerializeToString()).body == b'{"input":[[1,2]]}'


@pytest.mark.parametrize(
    "message",
    [
        pb.CreateEmbeddingsRequest(input=["a"], token_input=[pb.TokenList(ids=[1])]),
        pb.CreateEmbeddingsRequest(input=["a"] * 2049),
        pb.CreateEmbeddingsRequest(encoding=9),
        pb.CreateEmbeddingsRequest(model="m", extra_json='{"model":"n"}'),
    ],
)
def test_a_request_that_means_nothing_is_refused(message: pb.CreateEmbeddingsRequest) -> None:
    with pytest.raises(ProxyError) as refused:
        embeddings_request(message.SerializeToString())
    assert refused.value.status == 400


def test_an_answer_is_the_other_programs_bytes() -> None:
    assert embeddings(answer(VALUES, usage={"prompt_tokens": 3, "total_tokens": 3})) == sample("other/embedding.pb")


def test_float32_is_exact_and_base64_is_read() -> None:
    packed = base64.b64encode(struct.pack("<8f", *VALUES)).decode()
    assert embeddings(answer(packed)) == embeddings(answer(VALUES))
    assert json.loads(embeddings_json(embeddings(answer(VALUES))))["data"][0]["embedding"] == VALUES


@pytest.mark.parametrize("case", ["json-embeddings-float", "json-embeddings-base64"])
def test_the_answers_of_the_corpus_are_read(case: str) -> None:
    body = json.loads(load(case).body)
    read = pb.CreateEmbeddingsResponse.FromString(embeddings(load(case).body))
    assert (read.model, read.usage.prompt_tokens, len(read.data)) == (body["model"], body["usage"]["prompt_tokens"], len(body["data"]))
    assert len(read.data[0].values) > 0


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=40))
def test_small_encodings_are_near(values: list[float]) -> None:
    for encoding, size, error in ((FLOAT16, 2, 2**-11), (INT8, 1, 1 / 250)):
        one = pb.CreateEmbeddingsResponse.FromString(embeddings(answer(values), encoding)).data[0]
        assert len(one.packed) == size * len(values)
        largest = max(map(abs, values))
        assert all(abs(got - value) <= error * largest + 1e-7 for got, value in zip(vector(one, encoding), values, strict=True))


def test_an_input_out_of_place_keeps_its_index() -> None:
    body = json.dumps({"data": [{"index": 1, "embedding": [1]}, {"index": 0, "embedding": [2]}]}).encode()
    assert [entry["index"] for entry in json.loads(embeddings_json(embeddings(body)))["data"]] == [1, 0]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"data":1}',
        b'{"data":[1]}',
        b'{"data":[{}]}',
        b'{"data":[{"embedding":"!"}]}',
        b'{"data":[{"embedding":["a"]}]}',
        b'{"data":[{"embedding":[1],"index":-1}]}',
        b'{"data":[{"embedding":"QQ=="}]}',
    ],
)
def test_what_is_no_answer_is_the_upstreams_fault(body: bytes) -> None:
    for encoding in (FLOAT32, FLOAT16, INT8):
        with pytest.raises(ProxyError) as failed:
            embeddings(body, encoding)
        assert failed.value.code == "upstream_bad_response"


@given(st.binary(max_size=80))
@settings(deadline=None)
def test_any_bytes_are_read_or_a_proxy_error(data: bytes) -> None:
    for act in (embeddings_request, embeddings_message, embeddings, embeddings_json, lambda body: models([], body)):
        status_of(act, data)


MODELS = [
    {"id": "gpt-5-mini", "object": "model", "created": 1754000000, "owned_by": "openai"},
    {"id": "field-agent", "object": "model", "owned_by": "proxyd"},
]


def test_models_are_what_the_sample_says_sorted() -> None:
    ours = pb.ListModelsResponse.FromString(models(MODELS))
    theirs = pb.ListModelsResponse.FromString(sample("other/models.pb"))
    assert sorted(ours.models, key=str) == sorted(theirs.models, key=str)
    assert [model.id for model in ours.models] == ["field-agent", "gpt-5-mini"]


def test_pages_of_models_are_all_models_once() -> None:
    entries = [{"id": f"m{number:03}"} for number in range(10)]
    got, token = [], ""
    while True:
        page = pb.ListModelsResponse.FromString(models(entries, pb.ListModelsRequest(page_size=3, page_token=token)))
        got += [model.id for model in page.models]
        token = page.next_page_token
        if not token:
            break
    assert got == [entry["id"] for entry in entries]
    with pytest.raises(ProxyError):
        models(entries, pb.ListModelsRequest(page_size=-1))
