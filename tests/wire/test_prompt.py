"""What limits reserve for a prompt: a cheap guess, rather too high than too low."""

import json

import pytest

from proxyd.model import Endpoint
from proxyd.wire.body import parse_ask
from proxyd.wire.prompt import estimate
from proxyd.wire.tokens import Tokenizers

TEXTS = {
    "english": "The quick brown fox jumps over the lazy dog, and then it sleeps under a tree until the evening. " * 20,
    "code": "def f(x: int) -> int:\n    if x > 3:\n        return g(x - 1) * 2\n    raise ValueError(f'{x!r} is too small')\n" * 20,
    "german": "Die Würde des Menschen ist unantastbar. Sie zu achten und zu schützen ist Verpflichtung aller Gewalt. " * 20,
    "chinese": "床前明月光，疑是地上霜。举头望明月，低头思故乡。" * 20,
    "hindi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता प्राप्त है। " * 20,
    "numbers": "3.14159265358979 2.71828182845904 1.41421356237309 " * 20,
}


def chat(text: str):
    return parse_ask(Endpoint.CHAT, json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": text}]}).encode())


@pytest.mark.parametrize("name", TEXTS)
def test_an_estimate_is_not_below_what_a_tokenizer_counts(name):
    counted, _ = Tokenizers().count_prompt(chat(TEXTS[name]), "gpt-4o")
    assert counted <= estimate(chat(TEXTS[name]), "gpt-4o") <= 5 * counted


def test_it_is_never_nothing_and_takes_whatever_comes():
    assert estimate(parse_ask(Endpoint.EMBEDDINGS, b'{"model":"m","input":""}'), "m") == 1
    assert estimate(parse_ask(Endpoint.EMBEDDINGS, b'{"model":"m","input":[1,2,3]}'), "m") == 3
    assert estimate(parse_ask(Endpoint.CHAT, b'{"model":"m","messages":17}'), "m") >= 1


def test_a_picture_counts_as_a_picture_and_not_as_its_letters():
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 300_000}}
    body = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": [picture]}]}).encode()
    assert estimate(parse_ask(Endpoint.CHAT, body), "gpt-4o") < 2000
