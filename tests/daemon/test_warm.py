"""What the first exchange would wait for is loaded behind the start, and behind a reload that asks for it; nothing else is."""

import re
from types import SimpleNamespace

import pytest

from proxyd.config.schema import Config, Kind, Model, Target, Upstream
from proxyd.daemon.warm import uncounted, warm
from proxyd.rules.pricelist import PriceList, may_ask
from proxyd.wire.tokens import Tokenizers
from tests.process import ROOT, Daemon, settings

FAR = {"kind": "openai", "base_url": "https://api.openai.com/v1", "api_key": "x"}
PRICE = {"input": 1, "output": 1}


def test_the_list_is_loaded_when_a_route_needs_it_and_not_before(tmp_path):
    """A list of the test's own, which says when it is read."""
    package = tmp_path / "site" / "genai_prices"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "data_snapshot.py").write_text(
        "print('the list is read', flush=True)\n\ndef get_snapshot():\n    return __import__('types').SimpleNamespace(providers=[])\n"
    )
    config = settings(upstreams={"far": FAR}, models={"m": {"upstream": "far", "price": PRICE}})
    daemon = Daemon(tmp_path, config, {"PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}"}).start()
    daemon.child.expect(re.compile("key for this run|ops on"))
    daemon.stop()
    assert "the list is read" not in daemon.log  # no route needs it
    daemon.start()
    daemon.write({**config, "models": {"m": "far"}})
    daemon.child.expect(re.compile("the list is read"))
    daemon.stop()
    daemon.start()
    daemon.child.expect(re.compile("the list is read"))
    daemon.stop()


async def test_an_upstream_that_does_not_count_has_its_vocabulary_loaded():
    pytest.importorskip("tiktoken")
    silent = Upstream(kind=Kind.OPENAI, base_url="http://127.0.0.1:1/v1", include_usage=False)
    config = Config(
        upstreams={"silent": silent, "telling": Upstream(kind=Kind.OPENAI, base_url="http://127.0.0.1:1/v1")},
        models={"a": Model(upstreams=(Target(upstream="silent", model="gpt-4"),)), "b": Model(upstreams=(Target(upstream="telling"),))},
    )
    assert list(uncounted(config)) == ["gpt-4"]
    runtime = SimpleNamespace(snapshot=SimpleNamespace(config=config), price_list=PriceList(), tokenizers=Tokenizers())
    await warm(runtime)
    assert list(runtime.tokenizers._loaded) == ["cl100k_base"]
    assert runtime.price_list._providers is None  # its own machine is in no list


@pytest.mark.parametrize(
    ("address", "listed"),
    [
        ("https://api.openai.com/v1", True),
        ("http://x.openai.azure.com:8080", True),
        ("https://10.example.com", True),
        ("http://127.0.0.1:11434", False),
        ("http://192.0.2.7", False),
        ("http://[2001:db8::1]:8000/v1", False),
        ("http://ollama:11434/v1", False),
        ("https://localhost/v1", False),
        (None, False),
    ],
)
def test_only_addresses_with_a_domain_can_be_in_the_list(address, listed):
    config = Config(upstreams={"u": Upstream(kind=Kind.OPENAI, base_url=address)}, models={"m": Model(upstreams=(Target(upstream="u"),))})
    assert may_ask(config) is listed
    prices = PriceList()
    assert prices.missing or prices.remembered(address, "m", None, 0)[0] is not listed
