"""Whole files: what is read, and every mistake at its place."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxyd.config.load import examine, load_file, parse
from proxyd.config.mistakes import ConfigError
from proxyd.config.schema import Config, Kind, OnDisconnect, Strategy, Target
from tests.config.samples import BASE, GOOD, SECRET, WRONG_SHAPE, secrets

EXAMPLE = (Path(__file__).parents[2] / "config.example.yaml").read_text("utf-8")
EXAMPLE_ENV = {"OPENAI_API_KEY": "a", "AZURE_API_KEY": "b", "LAPTOP_KEY": "c"}


def load(text, **environ):
    return parse(text, filename="c.yaml", secrets=secrets(**environ))


def mistakes(text, **environ):
    """The mistakes of a file, without its name."""
    with pytest.raises(ConfigError) as caught:
        load(text, **environ)
    return [str(mistake).removeprefix("c.yaml:") for mistake in caught.value.mistakes]


@pytest.mark.parametrize("name", GOOD)
def test_a_good_file_loads(name):
    config = load(GOOD[name])
    assert all(route.upstreams for route in config.models.values())


@pytest.mark.parametrize("name", WRONG_SHAPE)
def test_a_file_of_the_wrong_shape_is_refused(name):
    assert mistakes(WRONG_SHAPE[name])


def test_the_eight_lines_have_every_default():
    config = load(BASE)
    assert config == Config(upstreams=config.upstreams, models=config.models)
    assert config.upstreams["openai"].api_key == SECRET
    assert config.models["llama3.2"].upstreams == (Target(upstream="ollama"),)


def test_all_short_forms_mean_the_same_long_one():
    long = load(BASE + "  x: {upstreams: [{upstream: ollama}]}\n").models["x"]
    for short in ("ollama", "[ollama]", "{upstream: ollama}", "{upstreams: [ollama]}", "[{upstream: ollama}]"):
        assert load(BASE + f"  x: {short}\n").models["x"] == long


def test_a_route_says_everything():
    route = load(GOOD["everything of a route"]).models["x"]
    assert (route.retry.attempts, route.retry.on) == (1, ("timeout", 500))
    assert route.set == {"a": [1, None, {"b": 1.5}]}
    assert (route.force, route.drop, route.on_disconnect) == ({"n": 1}, ("x",), OnDisconnect.DRAIN)
    weighted = load(GOOD["weights"]).models["x"]
    assert weighted.strategy is Strategy.WEIGHTED
    assert weighted.upstreams == (Target(upstream="ollama"), Target(upstream="openai", model="m", weight=3))


def test_units_become_seconds_and_bytes():
    config = load(GOOD["durations and sizes"])
    assert (config.limits.body, config.limits.body_timeout, config.limits.header_timeout, config.streams.ping) == (1024, 90.0, 3.0, 0.5)
    assert load(GOOD["no pings"]).streams.ping is None
    timeouts = load(GOOD["timeouts"]).upstreams["ollama"].timeouts
    assert (timeouts.connect, timeouts.first_byte, timeouts.between_bytes, timeouts.total) == (1.0, None, 120.0, 86400.0)


def test_auth_is_none_only_where_it_is_written():
    assert load(BASE + "auth: none\n").auth is None
    assert load(BASE).auth is not None
    assert mistakes(BASE + "auth:\n") == ["7:6: 'auth' is not a mapping of keys; write its keys, or none to let everybody in"]
    assert mistakes(BASE + "auth: null\n") == ["7:7: 'auth' is not a mapping of keys; write its keys, or none to let everybody in"]


def test_the_operators_port_is_switched_off_by_its_address():
    assert load(BASE + "ops: {listen: off}\n").ops.listen is None
    told = "7:6: 'ops' is not a mapping of keys; write {listen: HOST:PORT}, or {listen: off} for none"
    assert [mistakes(BASE + f"ops: {word}\n") for word in ("off", "127.0.0.1:9000")] == [[told], [told]]


@pytest.mark.parametrize("word", ["none", "off", "null", "~"])
def test_a_section_is_left_out_by_the_words_that_leave_out_a_value(word):
    settings = load(BASE + f"cors: {word}\ntls: {word}\n")
    assert (settings.cors, settings.tls) == (None, None)
    assert mistakes(BASE + "cors:\n") == ["7:6: 'cors' is not a mapping of keys"]


def test_a_base_url_loses_its_last_slash():
    assert load(BASE.replace("/v1,", "/v1/,")).upstreams["openai"].base_url == "https://api.example.com/v1"


MISTAKES = [
    # keys and types
    (BASE + "streems: {}\n", ["7:1: unknown key 'streems'; did you mean 'streams'?"]),
    (BASE.replace("{kind: ollama}", "{kind: ollama, timout: 30s}"), ["2:26: unknown key 'timout'; did you mean 'timeouts'?"]),
    (BASE + "xyzzy: 1\n", ["7:1: unknown key 'xyzzy'"]),
    (BASE + "shared: {url: x}\n", ["7:1: 'shared' is not built yet in this version; remove it"]),
    (BASE + "  x: {upstream: ollama, cache: {ttl: 1m}}\n", ["7:25: 'cache' is not built yet in this version; remove it"]),
    (
        BASE + "  x: {upstream: ollama, price: {input: 0.1234567891, output: -1, currency: usd}}\n",
        [
            "7:40: '0.1234567891' is finer than a billionth for a million tokens",
            "7:62: '-1' is not an amount; write it in plain decimal, without a currency: 0.15",
            "7:76: 'usd' is not a currency; write three capital letters, as in USD",
        ],
    ),
    (
        BASE + "  x: {upstream: ollama, price: {cached_input: 1, tiers: [{above: 5, input: 1}, {above: 5}]}}\n",
        [
            "7:32: the price has neither 'input' nor 'output'; write at least one, 0 for what is free",
            "7:88: there is another tier above '5'",
        ],
    ),
    (
        BASE + "  x: {upstream: ollama, price: {input: 0.15, services: {flex: {outptu: 1}}}}\n",
        ["7:64: unknown key 'outptu'; did you mean 'output'?"],
    ),
    (BASE + "otel: {endpoint: localhost:4318}\n", ["7:18: 'endpoint' must begin with http:// or https://"]),
    (
        BASE + 'otel: {endpoint: "http://h/v1/traces", headers: {"a b": c, d: "é"}}\n',
        [
            "7:18: 'endpoint' ends with the path of one signal; /v1/traces and /v1/metrics are added to it, so leave that away",
            "7:57: 'a b' cannot be the name of a header",
            "7:63: this value cannot go into a header: only visible ASCII characters, and blanks between them, can",
        ],
    ),
    (BASE + "analytics: {}\n", ["7:1: 'analytics' is not built yet in this version; remove it"]),
    (
        BASE + "auth: {keys: [{name: a, key: k, delivery: {max_dely_ms: 3}}]}\n",
        ["7:44: unknown key 'max_dely_ms'; did you mean 'max_delay_ms'?"],
    ),
    (BASE + "delivery: {max_bytes: 1MiB}\n", ["7:23: '1MiB' is more than 64KiB"]),
    (BASE.replace("kind: ollama", "kind: anthropic"), ["2:18: 'anthropic' is not built yet in this version; remove it"]),
    (BASE + "storage: {url: postgresql://h/d}\n", ["7:16: 'postgresql' is not built yet in this version; remove it"]),
    (BASE.replace("{kind: ollama}", "{}"), ["2:3: 'ollama' has no 'kind'; it is required"]),
    (
        BASE + "environment: Production\n",
        ["7:14: 'Production' is not one of development, test, staging, production; did you mean 'production'?"],
    ),
    (BASE + "streams: {ping: 0}\n", ["7:17: '0' must be more than 0; write none for no limit"]),
    (BASE + "limits: {streams: 0}\n", ["7:19: '0' is less than 1"]),
    (BASE + "limits: {body: 3GiB}\n", ["7:16: '3GiB' is more than 2GiB"]),
    (BASE + "limits: {streams: '5'}\n", ["7:19: '5' is text; write the number without quotes"]),
    (BASE + "limits: {streams: 1_000}\n", ["7:19: '1_000' is not a whole number; write it in plain decimal"]),
    (BASE + "limits: {streams: 010}\n", ["7:19: '010' is not a whole number; write it in plain decimal"]),
    (BASE + "limits: [1]\n", ["7:9: 'limits' is not a mapping of keys"]),
    (BASE + "listen: [1]\n", ["7:9: 'listen' is a single value, not a list"]),
    (
        BASE.replace("{kind: ollama}", "{kind: ollama, include_usage: yes}"),
        ["2:41: 'yes' is not true or false; write one of them, without quotes"],
    ),
    (BASE + "storage:\n", ["7:9: 'storage' is not a mapping of keys"]),
    (BASE + "ops: {listen: }\n", ["7:15: 'listen' is empty; write none, or remove it"]),
    # YAML 1.1
    (BASE + "  1.5: ollama\n", ['7:3: the name 1.5 is a number to YAML; quote it: "1.5"']),
    (BASE + "  yes: ollama\n", ['7:3: the name yes is a truth value to YAML; quote it: "yes"']),
    (BASE + "  12:30: ollama\n", ['7:3: the name 12:30 is a number of base 60 to YAML; quote it: "12:30"']),
    (BASE + "  ~: ollama\n", ['7:3: the name ~ is nothing to YAML; quote it: "~"']),
    (BASE + "aliases: {a: NO}\n", ["7:14: 'a' is text, but this is a truth value to YAML; put it in quotes"]),
    (BASE + "streams: {ping: 12:30}\n", ["7:17: '12:30' is not a duration; write 30s, 500ms, 5m, 2h or 1d"]),
    (
        BASE + "  x: {upstream: ollama, set: {a: on}}\n",
        ["7:34: 'on' is a truth value to some YAML readers; write \"on\" for text, or a plain true, false or decimal number"],
    ),
    (BASE + "  ? [a]\n  : ollama\n", ["7:5: a key must be text"]),
    (BASE + "  x: ollama\n  x: openai\n", ["8:3: 'x' is there twice; first on line 7"]),
    (BASE + "  x: &a ollama\n", ["7:6: anchors and aliases are not supported; write it out"]),
    (BASE + "  x: *a\n", ["7:6: anchors and aliases are not supported; write it out"]),
    (BASE + "  x: !!str ollama\n", ["7:6: tags are not supported; remove it"]),
    (BASE + "  x: {<<: {upstream: ollama}, upstream: ollama}\n", ["7:7: merge keys are not supported; write it out"]),
    (BASE + "---\na: b\n", ["7:1: a second document begins here; the file holds one"]),
    ("", ["1:1: the file is empty; it begins with 'upstreams:' and 'models:'"]),
    ("a: 'b\nc: d\n", ["1:4: not YAML: a quote that is opened here is never closed"]),
    ("a: b: c\n", ["1:5: not YAML: a ':' is not expected here; check the indentation, or quote the value"]),
    ("a:\n\tb: c\n", ["2:1: not YAML: a tab cannot indent; use spaces"]),
    ("a: @b\n", ["1:4: not YAML: no value begins with this character; put it in quotes"]),
    ("models:\n  *: b\n", ["2:4: not YAML: a name that begins with * or & stands in quotes"]),
    ("a: {b: c, d: ${E}}\n", ["1:15: not YAML: a ',' or '}' is missing; inside of { } a ${…} stands in quotes"]),
    ("a: [${E}]\n", ["1:6: not YAML: a ',' or ']' is missing; inside of [ ] a ${…} stands in quotes"]),
    ("a: \x07\n", ["1:4: the character U+0007 is not allowed in YAML"]),
    # names that lead nowhere
    (BASE + "  x: olama\n", ["7:6: no upstream is called 'olama'; did you mean 'ollama'?"]),
    (BASE + "  x: [ollama, {upstream: opnai}]\n", ["7:26: no upstream is called 'opnai'; did you mean 'openai'?"]),
    (BASE + "  x: [[], zzz]\n", ["7:7: 'upstreams'[0] is not a mapping of keys", "7:11: no upstream is called 'zzz'"]),
    (BASE + "aliases: {a: lama3.2}\n", ["7:14: no model is called 'lama3.2'; did you mean 'llama3.2'?"]),
    (BASE + "aliases: {llama3.2: hf/x}\n", ["7:11: the alias 'llama3.2' hides the model of that name"]),
    (BASE + "aliases: {a: b, b: llama3.2}\n", ["7:14: 'b' is itself an alias; name the model"]),
    (BASE + "aliases: {a: hf/*}\n", ["7:14: 'hf/*' is a pattern; an alias leads to one model"]),
    (BASE + "aliases: {a*: hf/x}\n", ["7:11: 'a*': an alias is one name, not a pattern; write a route for a pattern"]),
    (BASE + "  a*b: ollama\n", ["7:3: 'a*b': a * stands at the end of a pattern only, and once"]),
    (BASE + "  x/y: {upstream: ollama, strip_prefix: z/}\n", ["7:41: 'x/y' does not begin with 'z/'"]),
    (BASE + "  x/: {upstream: ollama, strip_prefix: x/}\n", ["7:40: nothing is left of 'x/' without it"]),
    (
        BASE + "  x: {upstream: ollama, retry: {on: [conect, 42]}}\n",
        [
            "7:38: 'conect' is not connect, timeout, 5xx or a status; did you mean 'connect'?",
            "7:46: '42' is not a status worth a retry; those are 400 to 599",
        ],
    ),
    (BASE + "  x: {upstream: ollama, set: {a: 1}, drop: [b, a]}\n", ["7:48: 'a' is both added and dropped"]),
    (BASE + "  x: {upstream: ollama, drop: [stream]}\n", ["7:32: 'stream' cannot be dropped: it steers the exchange"]),
    (
        BASE + "  x: {upstream: ollama, force: {model: y}}\n",
        ["7:32: 'force' may not hold 'model': it steers the exchange; a target's 'model' renames"],
    ),
    (BASE + "  x: {upstreams: []}\n", ["7:18: the route names no upstream"]),
    (BASE + "  x: {upstreams: ollama}\n", ["7:18: 'upstreams' is a list: [a, b]; for a single one write 'upstream'"]),
    (BASE + "  x: {}\n", ["7:6: the route has no 'upstream' (or 'upstreams')"]),
    (
        BASE + "  x: {upstrem: ollama, retry: {attemps: 2}}\n",
        [
            "7:6: the route has no 'upstream' (or 'upstreams')",
            "7:7: unknown key 'upstrem'; did you mean 'upstream'?",
            "7:32: unknown key 'attemps'; did you mean 'attempts'?",
        ],
    ),
    (
        BASE + "  x: {upstream: ollama, upstreams: [openai], strateggy: weighted}\n",
        [
            "7:25: 'upstream' and 'upstreams' exclude each other; write one of them",
            "7:46: unknown key 'strateggy'; did you mean 'strategy'?",
        ],
    ),
    (
        BASE + "  x/*: {upstream: ollama, model: y, strip_prefix: x/}\n",
        ["7:51: 'strip_prefix' has nothing to do: every upstream of the route has a 'model' of its own"],
    ),
    # upstreams
    (
        BASE.replace("{kind: ollama}", "{kind: ollama, base_url: 'http://h:11434/api'}"),
        ["2:36: 'base_url' ends with /api; it is asked by its /v1, so leave that away"],
    ),
    (BASE.replace("https://api", "ftp://api"), ["3:36: 'base_url' must begin with http:// or https://"]),
    (BASE.replace("https://api", "https://me:pw@api"), ["3:36: 'base_url' must hold no user or password; write 'api_key'"]),
    (BASE.replace("/v1,", "/v1?a=b,"), ["3:36: 'base_url' must have no query and no fragment"]),
    (
        BASE.replace("/v1,", "/v1/chat/completions,"),
        ["3:36: 'base_url' ends with /chat/completions; the endpoint is added to it, so leave that away"],
    ),
    (BASE.replace("api.example.com/v1", "h:99999"), ["3:36: 'base_url' is not a URL; is the port a number, and an IPv6 host in brackets?"]),
    (BASE.replace("base_url: https://api.example.com/v1, ", ""), ["3:3: the kind openai needs a 'base_url'"]),
    (
        BASE.replace("kind: ollama", "kind: echo, base_url: http://x"),
        ["2:34: the kind echo is embedded: 'base_url' has no use there; remove it"],
    ),
    (BASE.replace("kind: ollama", "kind: ollama, api_version: 2024-10-21"), ["2:39: 'api_version' is for the kind azure; ollama has none"]),
    (BASE.replace("kind: ollama", "kind: azure"), ["2:3: the kind azure needs a 'base_url'", "2:3: the kind azure needs an 'api_key'"]),
    (
        BASE.replace("kind: ollama", "kind: azure, base_url: https://x/openai/v1, api_key: k, api_version: 2024-10-21"),
        ["2:81: a dated API has no /v1 in its 'base_url'; remove one of them"],
    ),
    (
        BASE.replace("kind: ollama", "kind: azure, base_url: https://x, api_key: k, api_version: v1"),
        ["2:71: 'v1' is not the date of an API, as in 2024-10-21 or 2025-04-01-preview; the v1 API has none"],
    ),
    (
        BASE.replace("kind: ollama", "kind: azure, base_url: https://x/openai/deployments/gpt-4o, api_key: k, api_version: 2024-10-21"),
        ["2:35: 'base_url' names a deployment; the route's model does, so leave it away from /openai on"],
    ),
    # listeners, keys, storage
    (
        BASE + "listen: 8080\n",
        ["7:9: '8080' is not an address; write host:port, as in 127.0.0.1:8080, [::1]:8080 or unix:/run/proxyd.sock"],
    ),
    (BASE + "listen: 0.0.0.0:9464\n", ["1:1: 'ops.listen' and 'listen' are the same address; the operator's port is another one, or off"]),
    (
        BASE + "ops: {listen: localhost:8080}\n",
        ["7:15: 'ops.listen' and 'listen' are the same address; the operator's port is another one, or off"],
    ),
    (
        BASE + "cors: {origins: [https://a.example.com/, 'HTTPS://a', https://a:443, https://a, chrome-extension://abc, 'null', '*']}\n",
        [
            *(
                f"7:{column}: {written} is not an origin; write https://example.com: lower case, no slash at the end, no default port"
                for column, written in ((18, "'https://a.example.com/'"), (42, "'HTTPS://a'"), (55, "'https://a:443'"), (105, "'null'"))
            ),
            "7:113: '*' says all; remove the others, or remove it",
        ],
    ),
    (
        BASE + "cors: {origins: ['*'], credentials: true}\n",
        ["7:18: every page with credentials would be every page in the name of whoever visits it; name the origins"],
    ),
    (BASE + "cors: {}\n", ["7:7: 'cors' names no origin; write origins: [https://example.com], or remove it"]),
    (BASE + "auth: {keys: [{name: a, key: k}, {name: a, key: l}]}\n", ["7:41: the name 'a' is there twice"]),
    (BASE + "auth: {keys: [{name: a, key: k}, {name: b, key: k}]}\n", ["7:49: the key is the same as that of 'a'"]),
    (BASE + "auth: {keys: [{name: a, key: 'k y'}]}\n", ["7:30: 'key' cannot go into a header: only visible ASCII characters can"]),
    (BASE + "auth: {keys: [{name: a, key: k, models: [lama3.2]}]}\n", ["7:42: no model is called 'lama3.2'; did you mean 'llama3.2'?"]),
    (BASE + "auth: {keys: [{name: a, key: k, models: []}]}\n", ["7:41: 'a' may use no model; write [\"*\"] for all, or remove the key"]),
    (BASE + "auth: {keys: [{name: a, key: k, models: ['a*b']}]}\n", ["7:42: 'a*b': a * stands at the end of a pattern only, and once"]),
    (BASE + "storage: {url: 'sqlite:///:memory:'}\n", ["7:16: 'url' must name a file on a disk, and nothing else: no options, no memory"]),
    (
        BASE + "storage: {url: proxyd.db}\n",
        ["7:16: 'url' is not a database; write sqlite:///proxyd.db or, with four slashes, sqlite:////var/lib/proxyd/proxyd.db"],
    ),
    (
        BASE + "auth: {keys: [{name: a, key: k, default_model: lama3.2}]}\n",
        ["7:48: no model is called 'lama3.2'; did you mean 'llama3.2'?"],
    ),
    (BASE + "auth: {keys: [{name: a, key: k, default_model: hf/*}]}\n", ["7:48: 'hf/*' is a pattern; name one model"]),
    # references
    *(
        (BASE.replace('"${KEY}"', f'"{form}"'), ["3:73: 'api_key' would be these very characters; a variable is written ${NAME}"])
        for form in ("$OPENAI_API_KEY", "$(OPENAI_API_KEY)", "{{ OPENAI_API_KEY }}", "%OPENAI_API_KEY%", "env:OPENAI_API_KEY")
    ),
    (BASE + "auth: {keys: [{name: a, key: $LAPTOP_KEY}]}\n", ["7:30: 'key' would be these very characters; a variable is written ${NAME}"]),
    (BASE + "listen: ${NOPE}\n", ["7:9: the variable NOPE is not set; set it, or write it into the .env beside the file"]),
    (BASE + "listen: ${KEEY}\n", ["7:9: the variable KEEY is not set; did you mean 'KEY'?"]),
    (BASE + "listen: ${file:/x}\n", ["7:9: /x cannot be read: No such file or directory"]),
    (BASE + '  "${KEY}": ollama\n', ["7:3: names are not expanded; write the name itself"]),
]


@pytest.mark.parametrize(("text", "expected"), MISTAKES, ids=[expected[0] for _, expected in MISTAKES])
def test_a_mistake_is_told_at_its_place(text, expected):
    assert mistakes(text) == expected


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file():
    found = mistakes(BASE.replace("kind: ollama", "kind: olama") + "  x: opnai\n  x: openai\nlisten: 1\nshared: {}\naliases: {a: zzz}\n")
    assert [line.split(":")[0] for line in found] == ["2", "7", "8", "9", "10", "11"]


def test_an_upstream_that_is_wrong_still_has_its_name():
    assert len(mistakes(BASE.replace("kind: ollama", "kind: olama"))) == 1


def test_nesting_is_bounded_before_anything_walks_it():
    assert mistakes("a: " + "[" * 400_000) == ["1:67: nested deeper than 64 levels"]


def test_size_is_bounded_before_parsing():
    assert mistakes("#" + "ä" * 500_001) == ["1:1: the file is larger than 1000000 bytes"]


def test_a_thousand_routes_load():
    config = load(BASE + "".join(f"  m{number}: [ollama, {{upstream: openai, model: x}}]\n" for number in range(1000)))
    assert len(config.models) == 1002


def places_of(text, **environ):
    """Where a file has mistakes; nowhere if it loads."""
    try:
        load(text, **environ)
    except ConfigError as error:
        return [(mistake.line, mistake.column) for mistake in error.mistakes]
    return []


@settings(max_examples=300)
@given(st.text(st.characters(codec="utf-8"), max_size=80) | st.text("{}[]:,-*&!?|>'\"%@`#\n \tab1~<$", max_size=60))
def test_any_text_is_a_configuration_or_mistakes_with_places(text):
    breaks = sum(text.count(each) for each in "\n\r\x85\u2028\u2029")
    assert all(1 <= line <= breaks + 2 and column >= 1 for line, column in places_of(text))


REPLACEMENTS = ["", "\n", " ", ":", "- ", "{", "[", "'", "*a", "&a ", "1", "none", "${X}", "\t", "? ", "!!x ", "a: b\n"]


@settings(max_examples=200, deadline=None)
@given(start=st.integers(0, len(EXAMPLE)), length=st.integers(0, 60), new=st.sampled_from(REPLACEMENTS))
def test_any_change_to_the_example_is_a_configuration_or_mistakes(start, length, new):
    places_of(EXAMPLE[:start] + new + EXAMPLE[start + length :], **EXAMPLE_ENV)


SCALARS = [
    "listen",
    "environment",
    "ops.listen",
    "storage.url",
    "storage.durability",
    "streams.ping",
    "streams.drain",
    "limits.body",
    "limits.streams",
    "upstreams.openai.kind",
    "upstreams.openai.base_url",
    "upstreams.openai.api_version",
    "upstreams.openai.include_usage",
    "upstreams.openai.max_connections",
    "upstreams.openai.timeouts.connect",
    "models.x",
    "models.x.upstream",
    "models.x.strategy",
    "models.x.strip_prefix",
    "models.x.retry.attempts",
    "models.x.on_disconnect",
    "models.x.set.a.b",
    "aliases.a",
    "auth",
    "upstreams",
    "models",
    "models.x.retry.on.0",
    "models.x.drop.0",
    "models.x.upstreams.0",
    "auth.keys.0.name",
    "auth.keys.0.key",
    "auth.keys.0.models.0",
    "ops",
    "limits",
]


@pytest.mark.parametrize("path", SCALARS)
@pytest.mark.parametrize("secret", [SECRET, "p\x1bq-secret", "https://u:pa55word@h/?q", "x" * 300, "sqlite:///pa55word?x"])
def test_a_secret_is_in_no_message_wherever_it_is_put(path, secret):
    """A reference may be put into any field by mistake; what it stands for must not come out."""
    document = {
        "upstreams": {"openai": {"kind": "openai", "base_url": "https://a.example", "api_key": "${KEY}"}},
        "models": {"m": "openai"},
    }
    here = document
    *parents, last = path.split(".")
    for number, part in enumerate(parents):
        below = parents[number + 1] if number + 1 < len(parents) else last
        new = [] if below.isdigit() else {}
        if isinstance(here, list):
            here.append(new)
            here = new
        else:
            here[part] = here.get(part, new)
            here = here[part]
    if isinstance(here, list):
        here.append("${SECRET}")
    else:
        here[last] = "${SECRET}"
    try:
        loaded = examine(msgspec.json.encode(document).decode(), filename="c.yaml", secrets=secrets(SECRET=secret))
    except ConfigError as error:
        told = str(error)
    else:
        told = "\n".join(str(warning) for warning in loaded.warnings)
    assert not any(piece in told for piece in (secret, SECRET, "pa55word", "-secret", "xxxxx"))


def test_a_literal_key_and_an_idle_upstream_are_warned_of():
    loaded = examine(BASE.replace('"${KEY}"', "sk-literal"), filename="c.yaml", secrets=secrets())
    assert [str(warning) for warning in loaded.warnings] == [
        "c.yaml:3:73: 'api_key' stands in the file itself; write ${VAR} and keep it out of the file"
    ]
    idle = examine(BASE.replace('"hf/*": openai', "x: ollama"), filename="c.yaml", secrets=secrets())
    assert [str(warning) for warning in idle.warnings] == ["c.yaml:3:3: no model uses the upstream 'openai'"]


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        (
            BASE.replace("https://api.example.com/v1", "https://api.example.com"),
            "3:36: 'base_url' has no path; most servers that speak like OpenAI are asked under /v1",
        ),
        (
            BASE + "  x: {upstreams: [ollama, {upstream: openai, weight: 3}]}\n",
            "7:54: 'weight' counts only with strategy: weighted",
        ),
    ],
)
def test_what_is_likely_a_slip_is_warned_of(text, warning):
    loaded = examine(text, filename="c.yaml", secrets=secrets())
    assert [str(each) for each in loaded.warnings] == [f"c.yaml:{warning}"]


def test_weights_beside_a_strategy_that_was_chosen_are_no_slip():
    text = BASE + "  x: {upstreams: [ollama, {upstream: openai, weight: 3}], strategy: failover}\n"
    assert examine(text, filename="c.yaml", secrets=secrets()).warnings == ()


def test_a_file_is_read_with_its_env_and_its_secret_files(tmp_path):
    (tmp_path / "config.yaml").write_text(
        BASE + 'auth: {keys: [{name: a, key: "${file:key.txt}"}, {name: b, key: "${credential:c}"}]}\nlisten: ${L}\n'
    )
    (tmp_path / ".env").write_text("KEY=from-env-file\nL=127.0.0.1:1\n")
    (tmp_path / "key.txt").write_text("from-file\n")
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials" / "c").write_text("from-systemd")
    config = load_file(tmp_path / "config.yaml", {"L": "127.0.0.1:2", "CREDENTIALS_DIRECTORY": str(tmp_path / "credentials")})
    assert config.upstreams["openai"].api_key == "from-env-file"
    assert config.auth is not None
    assert [key.key for key in config.auth.keys] == ["from-file", "from-systemd"]
    assert config.listen == "127.0.0.1:2"
    assert config.upstreams["openai"].kind is Kind.OPENAI


def test_what_cannot_be_read_is_a_mistake_too(tmp_path):
    path = tmp_path / "c.yaml"
    with pytest.raises(ConfigError, match=r"c\.yaml:1:1: cannot be read: No such file or directory"):
        load_file(path, {})
    path.write_bytes(b"a: b\n\xc3\xa4: \xff\n")
    with pytest.raises(ConfigError, match=r"c\.yaml:2:4: not UTF-8"):
        load_file(path, {})
    path.write_bytes(b"#" * 1_000_001)
    with pytest.raises(ConfigError, match="larger than"):
        load_file(path, {})


def test_mistakes_of_both_files_are_told_together(tmp_path):
    (tmp_path / "c.yaml").write_text("a: b\n")
    (tmp_path / ".env").write_text("what is this\n")
    with pytest.raises(ConfigError) as caught:
        load_file(tmp_path / "c.yaml", {})
    assert {Path(mistake.file).name for mistake in caught.value.mistakes} == {"c.yaml", ".env"}


def test_who_only_looks_needs_no_secrets():
    text = BASE.replace("upstreams:", "upstreams:\n  far: {kind: openai, base_url: '${FAR}', api_key: '${FAR_KEY}'}", 1) + "  f: far\n"
    strict = mistakes(text)
    assert len(strict) >= 2
    looked = examine(text, filename="c.yaml", secrets=secrets(), lenient=True).config
    assert looked.upstreams["far"].api_key is None
    assert looked.models["f"].upstreams == (Target(upstream="far"),)


@pytest.mark.parametrize("where", ["storage: {url: 'sqlite:///${X_DB}'}", "listen: '${X_DB}'", "ops: {listen: '${X_DB}'}"])
def test_but_needs_to_know_where_things_are(where):
    with pytest.raises(ConfigError, match="X_DB is not set"):
        examine(BASE + where + "\n", filename="c.yaml", secrets=secrets(), lenient=True)


def test_and_other_mistakes_stay_mistakes():
    with pytest.raises(ConfigError, match="unknown key"):
        examine(BASE + "lsten: x\n", filename="c.yaml", secrets=secrets(), lenient=True)
