"""Token counts, offline: the encodings are OpenAI's own, and no text is too strange or too long."""

from __future__ import annotations

import base64
import hashlib
import sys

import msgspec
import pytest
import tiktoken_ext.openai_public
from hypothesis import given, settings
from hypothesis import strategies as st

from proxyd.model import Ask, Endpoint, Source
from proxyd.wire.tokens import _PATTERNS, EXACT_LIMIT, PIECES_LIMIT, Tokenizers, encoding_for, vocabulary

TOKENIZERS = Tokenizers()

# What tiktoken 0.14 demands of the files that it downloads (tiktoken_ext/openai_public.py).
CHECKSUMS = {
    "o200k_base": "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    "cl100k_base": "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
}


def ask(endpoint: Endpoint = Endpoint.CHAT, model: str = "gpt-4o", **fields) -> Ask:
    raw = {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in fields.items()}
    return Ask(endpoint, model, stream=False, wants_usage=False, max_tokens=None, choices=1, fields=raw)


@pytest.mark.parametrize("name", CHECKSUMS)
def test_a_vocabulary_rebuilds_openais_file_to_the_byte(name):
    lines = (base64.b64encode(token) + b" %d\n" % rank for token, rank in vocabulary(name).items())
    assert hashlib.sha256(b"".join(lines)).hexdigest() == CHECKSUMS[name]


@pytest.mark.parametrize("name", CHECKSUMS)
def test_an_encoding_cuts_text_by_tiktokens_own_pattern(name, monkeypatch):
    """Its definitions are asked for everything but the download."""
    monkeypatch.setattr(tiktoken_ext.openai_public, "load_tiktoken_bpe", lambda *_, **__: {})
    assert _PATTERNS[name] == getattr(tiktoken_ext.openai_public, name)()["pat_str"]


@pytest.mark.parametrize(
    ("model", "encoding", "exact"),
    [
        ("gpt-4o", "o200k_base", True),
        ("gpt-4o-mini-2024-07-18", "o200k_base", True),
        ("gpt-5.4-2026-03-05", "o200k_base", True),
        ("o3", "o200k_base", True),
        ("o1-mini", "o200k_base", True),
        ("chatgpt-4o-latest", "o200k_base", True),
        ("gpt-oss:20b", "o200k_base", True),
        ("gpt-4", "cl100k_base", True),
        ("gpt-4-turbo", "cl100k_base", True),
        ("gpt-3.5-turbo-0125", "cl100k_base", True),
        ("gpt-35-turbo", "cl100k_base", True),
        ("text-embedding-3-small", "cl100k_base", True),
        ("ft:gpt-4.1-mini:acme::x1", "o200k_base", True),
        ("ft:gpt-3.5-turbo:acme::x1", "cl100k_base", True),
        ("openai/gpt-4o:free", "o200k_base", True),
        ("azure/gpt-4", "cl100k_base", True),
        ("somebody/gpt-4", "cl100k_base", False),
        ("gpt-4all", "o200k_base", False),
        ("gpt-4.9", "o200k_base", False),
        ("gpt-6", "o200k_base", False),
        ("gpt-audio-mini", "o200k_base", False),
        ("computer-use-preview", "o200k_base", False),
        ("llama3.2:3b", "o200k_base", False),
        ("Qwen/Qwen3-8B", "o200k_base", False),
        ("", "o200k_base", False),
    ],
)
def test_models_have_their_encodings(model, encoding, exact):
    assert encoding_for(model) == (encoding, exact)


def test_text_is_counted_in_the_models_own_encoding():
    """The numbers are tiktoken's for this sentence in both encodings."""
    text = "Grüße, 世界! The quick brown fox doesn't jump 12345 times."
    assert TOKENIZERS.count(text, "gpt-4o") == (17, Source.COUNTED)
    assert TOKENIZERS.count(text, "gpt-4") == (21, Source.COUNTED)
    assert TOKENIZERS.count(text, "llama3.2") == (17, Source.ESTIMATED)


def test_special_tokens_in_a_text_are_letters():
    """`<|endoftext|>` written by a user is seven tokens of text and no error."""
    assert TOKENIZERS.count("<|endoftext|>", "gpt-4o") == (7, Source.COUNTED)


COOKBOOK = [
    ("system", None, "You are a helpful, pattern-following assistant that translates corporate jargon into plain English."),
    ("system", "example_user", "New synergies will help drive top-line growth."),
    ("system", "example_assistant", "Things working well together will increase revenue."),
    ("system", "example_user", "Let's circle back when we have more bandwidth to touch base on opportunities for increased leverage."),
    ("system", "example_assistant", "Let's talk later when we're less busy about how to do better."),
    ("user", None, "This late pivot means we don't have time to boil the ocean for the client deliverable."),
]


@pytest.mark.parametrize(("model", "tokens"), [("gpt-4", 129), ("gpt-3.5-turbo", 129), ("gpt-4o", 124), ("gpt-4o-mini", 124)])
def test_a_chat_prompt_counts_as_openais_api_reported_it(model, tokens):
    """The cookbook's example, whose counts the API confirmed."""
    messages = [{"role": role, "content": text, **({"name": name} if name else {})} for role, name, text in COOKBOOK]
    assert TOKENIZERS.count_prompt(ask(model=model, messages=messages)) == (tokens, Source.COUNTED)


WEATHER = {
    "name": "get_current_weather",
    "description": "Get the current weather in a given location",
    "parameters": {
        "type": "object",
        "properties": {
            "location": {"type": "string", "description": "The city and state, e.g. San Francisco, CA"},
            "unit": {"type": "string", "description": "The unit of temperature to return", "enum": ["celsius", "fahrenheit"]},
        },
        "required": ["location"],
    },
}


@pytest.mark.parametrize(("model", "tokens"), [("gpt-4", 105), ("gpt-4o", 101)])
def test_a_tool_counts_as_openais_api_reported_it(model, tokens):
    messages = [
        {"role": "system", "content": "You are a helpful assistant that can answer to questions about the weather."},
        {"role": "user", "content": "What's the weather like in San Francisco?"},
    ]
    tools = [{"type": "function", "function": WEATHER}]
    assert TOKENIZERS.count_prompt(ask(model=model, messages=messages, tools=tools)) == (tokens, Source.COUNTED)


def test_an_image_is_estimated_and_its_base64_is_not_text():
    url = "data:image/png;base64," + "iVBORw0KGgo" * 20_000
    content = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": url}}]
    count, source = TOKENIZERS.count_prompt(ask(messages=[{"role": "user", "content": content}]))
    assert (count, source) == (765 + 3 + 3 + 1 + 4, Source.ESTIMATED)


def test_low_detail_audio_and_files_are_estimated_by_kind_and_size():
    parts = [
        {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}},
        {"type": "input_audio", "input_audio": {"format": "wav", "data": "A" * 64_000}},
        {"type": "file", "file": {"file_data": "A" * 6_400}},
    ]
    empty, _ = TOKENIZERS.count_prompt(ask(messages=[{"role": "user", "content": []}]))
    for part, tokens in zip(parts, (85, 11, 301), strict=True):
        counted = TOKENIZERS.count_prompt(ask(messages=[{"role": "user", "content": [part]}]))
        assert counted == (empty + tokens, Source.ESTIMATED)


@pytest.mark.parametrize(
    ("value", "tokens"),
    [("hello world", 2), (["hello world", "hello"], 3), ([1, 2, 3], 3), ([[1, 2], [3]], 3), ([], 0)],
)
@pytest.mark.parametrize(("endpoint", "member"), [(Endpoint.COMPLETIONS, "prompt"), (Endpoint.EMBEDDINGS, "input")])
def test_prompts_and_inputs_count_as_strings_or_tokens(endpoint, member, value, tokens):
    assert TOKENIZERS.count_prompt(ask(endpoint, **{member: value})) == (tokens, Source.COUNTED)


def test_token_arrays_are_exact_for_any_model():
    """Who sends tokens has counted them, whatever the model."""
    assert TOKENIZERS.count_prompt(ask(Endpoint.EMBEDDINGS, "nomic-embed-text", input=[[1, 2], [3]])) == (3, Source.COUNTED)


def test_the_upstreams_name_of_the_model_decides():
    asked = ask(model="fast", messages=[])
    assert TOKENIZERS.count_prompt(asked)[1] is Source.ESTIMATED
    assert TOKENIZERS.count_prompt(asked, "gpt-4o") == (3, Source.COUNTED)


@pytest.mark.parametrize("letter", [" ", "a", "\n", "=", "1", "é", "😀", "\x00"])
def test_a_megabyte_of_one_letter_is_estimated_without_a_panic(letter):
    """Whole, it overflows the regex engine's stack: a Rust panic that `except Exception` does not catch."""
    count, source = TOKENIZERS.count(letter * 1_000_000, "gpt-4o")
    few, _ = TOKENIZERS.count(letter * 50_000, "gpt-4o")
    assert source is Source.ESTIMATED
    assert count == pytest.approx(few * 20, rel=0.02)


def test_a_text_up_to_the_limit_is_counted_exactly_across_slices():
    words = "the quick brown fox jumps over "
    text = words * (EXACT_LIMIT // len(words))
    count, source = TOKENIZERS.count(text, "gpt-4o")
    assert source is Source.COUNTED
    assert count == text.count(" ") + 1  # the last space is a token of its own


def test_very_many_messages_are_counted_as_one_text():
    count, source = TOKENIZERS.count_prompt(ask(messages=[{"role": "user", "content": "hi"}] * (PIECES_LIMIT // 2 + 1)))
    assert source is Source.ESTIMATED
    assert count > 5 * PIECES_LIMIT // 2


@given(st.text(st.characters(exclude_categories=())))
@settings(max_examples=50, deadline=None)
def test_no_text_is_refused(text):
    """Lone surrogates included; a count never exceeds the bytes."""
    count, _ = TOKENIZERS.count(text, "gpt-4")
    assert 0 <= count <= len(text.encode("utf-8", "surrogatepass"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=8) | st.sampled_from(["role", "content", "type", "function"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["messages", "tools", "functions", "prompt", "input", "suffix", "response_format"]), json_values))
@settings(max_examples=150, deadline=None)
def test_any_ask_can_be_counted(fields):
    for endpoint in Endpoint:
        count, source = TOKENIZERS.count_prompt(ask(endpoint, **fields))
        assert count >= 0
        assert source in (Source.COUNTED, Source.ESTIMATED)


def test_without_the_extra_counts_are_estimates_by_length(monkeypatch):
    """A quarter of the UTF-8 bytes, rounded up."""
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    bare = Tokenizers()
    assert bare.count("hello worlds", "gpt-4o") == (3, Source.ESTIMATED)
    assert bare.count("é" * 4, "gpt-4o") == (2, Source.ESTIMATED)
    assert bare.count_prompt(ask(messages=[{"role": "user", "content": "hi"}])) == (8, Source.ESTIMATED)
