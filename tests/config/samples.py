"""Pieces of configuration that several tests share."""

from proxyd.config.secrets import Secrets

BASE = """\
upstreams:
  ollama: {kind: ollama}
  openai: {kind: openai, base_url: https://api.example.com/v1, api_key: "${KEY}"}
models:
  llama3.2: ollama
  "hf/*": openai
"""

SECRET = "sk-zq-topsecret-9137"


def secrets(files=None, credentials=None, **environ):
    """Secrets with one variable, KEY, and files that are a dict."""

    def read(path):
        try:
            return (files or {})[path]
        except KeyError:
            raise FileNotFoundError(2, "No such file or directory", path) from None

    return Secrets({"KEY": SECRET, **environ}, read, credentials)


# A file that is right, by what is special about it.
GOOD = {
    "the common case": BASE,
    "a list of upstreams": BASE + "  both: [ollama, openai]\n",
    "a single upstream with a model": BASE + "  x: {upstream: openai, model: gpt-4o}\n",
    "a prefix": BASE + "  'o/*': {upstream: openai, strip_prefix: o/}\n",
    "weights": BASE + "  x: {upstreams: [ollama, {upstream: openai, model: m, weight: 3}], strategy: weighted}\n",
    "everything of a route": BASE
    + "  x: {upstream: ollama, retry: {attempts: 1, on: [timeout, 500]}, set: {a: [1, null, {b: 1.5}]},\n"
    + "      force: {n: 1}, drop: [x], on_disconnect: drain}\n",
    "a price": BASE
    + "  x: {upstream: ollama, price: {input: 0.15, output: '0.6', cached_input: none, per: 1k, currency: EUR,\n"
    + "      tiers: [{above: 200k, input: 1}], services: {flex: {output: 0}}}}\n"
    + "  y: {upstream: ollama, price: none}\n",
    "no pings": BASE + "streams: {ping: off, drain: 0}\n",
    "durations and sizes": BASE + "limits: {body: 1KiB, body_timeout: 1.5m, header_timeout: 3}\nstreams: {ping: 500ms}\n",
    "quoted units": BASE + 'limits: {body: "1KiB", body_timeout: "2h"}\nstreams: {ping: "off"}\n',
    "timeouts": BASE.replace(
        "{kind: ollama}", "{kind: ollama, timeouts: {connect: 1s, first_byte: none, total: 1d}, max_connections: 3, reuse: never}"
    ),
    "no auth": BASE + "auth: none\n",
    "keys": BASE + 'auth: {keys: [{name: a, key: "${KEY}", models: [llama3.2, "hf/x*"]}, {name: b, key: other}]}\n',
    "aliases": BASE + "aliases: {a: llama3.2, b: hf/some/thing}\n",
    "no operator's port": BASE + "ops: {listen: off}\n",
    "a Unix socket": BASE + "listen: unix:/run/proxyd.sock\n",
    "the system's ports": BASE + 'listen: "[::1]:0"\nops: {listen: "[::1]:0"}\n',
    "azure, dated": BASE.replace(
        "{kind: ollama}", "{kind: azure, base_url: https://x.openai.azure.com, api_key: k, api_version: 2024-10-21}"
    ),
    "azure, v1": BASE.replace("{kind: ollama}", "{kind: azure, base_url: https://x.openai.azure.com/openai/v1, api_key: k}"),
    "huggingface": BASE.replace("{kind: ollama}", "{kind: huggingface}"),
    "a variable for a number": BASE + "limits: {streams: '${N:-5}'}\nenvironment: ${E:-test}\n",
    "a null": BASE + "streams: {ping: null}\nops: {listen: ~}\n",
    "JSON": '{"upstreams": {"a": {"kind": "echo"}}, "models": {"1.5": "a"}, "limits": {"streams": 4, "body": 10}}',
}

# A file that is wrong for an editor too: its types or keys are not those of the schema.
WRONG_SHAPE = {
    "unknown key": BASE + "streems: {}\n",
    "unknown key of an upstream": BASE.replace("{kind: ollama}", "{kind: ollama, timout: 3s}"),
    "not built": BASE + "shared: {}\n",
    "kind": BASE.replace("kind: ollama", "kind: olama"),
    "no kind": BASE.replace("{kind: ollama}", "{}"),
    "no base_url": BASE.replace("base_url: https://api.example.com/v1, ", ""),
    "no key for azure": BASE.replace("{kind: ollama}", "{kind: azure, base_url: https://x}"),
    "no models": "upstreams: {a: {kind: echo}}\n",
    "empty models": "upstreams: {a: {kind: echo}}\nmodels: {}\n",
    "no upstreams": "models: {a: b}\n",
    "a list for a mapping": "upstreams: []\nmodels: {a: b}\n",
    "a number for text": BASE + "listen: 8080\n",
    "a duration": BASE + "streams: {ping: fast}\n",
    "a negative duration": BASE + "streams: {ping: -3}\n",
    "no drain": BASE + "streams: {drain: none}\n",
    "zero": BASE + "limits: {streams: 0}\n",
    "a fraction": BASE + "limits: {streams: 1.5}\n",
    "a size": BASE + "limits: {body: 3XB}\n",
    "too many attempts": BASE + "  x: {upstream: ollama, retry: {attempts: 11}}\n",
    "a retry word": BASE + "  x: {upstream: ollama, retry: {on: [conect]}}\n",
    "a retry status": BASE + "  x: {upstream: ollama, retry: {on: [200]}}\n",
    "a price in words": BASE + "  x: {upstream: ollama, price: {input: $1}}\n",
    "a price without amounts": BASE + "  x: {upstream: ollama, price: 3}\n",
    "a tier without its border": BASE + "  x: {upstream: ollama, price: {input: 1, tiers: [{output: 1}]}}\n",
    "no upstream in a route": BASE + "  x: {model: y}\n",
    "both forms": BASE + "  x: {upstream: ollama, upstreams: [ollama]}\n",
    "model beside upstreams": BASE + "  x: {upstreams: [ollama], model: y}\n",
    "an empty list": BASE + "  x: []\n",
    "a number for an upstream": BASE + "  x: 3\n",
    "a star in the middle": BASE + "  a*b: ollama\n",
    "a star in an alias": BASE + "aliases: {a*: llama3.2}\n",
    "an empty section": BASE + "auth:\n",
    "an empty value": BASE + "storage: {durability: }\n",
    "a key without a name": BASE + "auth: {keys: [{key: k}]}\n",
    "a weight": BASE + "  x: [{upstream: ollama, weight: 0}]\n",
    "not a mapping": "[1, 2]",
}
