"""What types cannot say: names that lead somewhere, addresses, what each kind of upstream needs."""

from __future__ import annotations

import re
from decimal import Decimal
from itertools import combinations
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from proxyd.config.address import Address, parse_address
from proxyd.config.issuers import check_issuers
from proxyd.config.mistakes import meant
from proxyd.config.not_built import NOT_BUILT_DATABASES, told
from proxyd.config.patterns import covers
from proxyd.config.schema import FIXED_MEMBERS, Auth, Environment, Kind, Model, Rates, Upstream
from proxyd.config.tree import Scalar, shown
from proxyd.config.units import moment
from proxyd.config.zones import zone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from proxyd.config.mistakes import Mistake
    from proxyd.config.read import Draft, Path
    from proxyd.config.schema import Budget, Otel, Price

RETRY_WORDS = ("connect", "timeout", "5xx")
_API_VERSION = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?:-preview)?")
_VISIBLE = re.compile("[\x21-\x7e]+")
_VALUE = re.compile("[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_PATH = re.compile("/[\x21-\x7e]{0,1000}")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]{0,30}://(?:[a-z0-9_.-]+|\[[0-9a-f:]+\])(?::[0-9]{1,5})?")
_KNOWS_ITS_URL = (Kind.OLLAMA, Kind.HUGGINGFACE, Kind.ECHO)
_ENDPOINTS = ("/chat/completions", "/completions", "/embeddings", "/models")


def check(draft: Draft) -> None:
    """Add to the draft every mistake that spans more than one value, or that a type cannot tell."""
    for each in _CHECKS:
        each(draft)


def warnings(draft: Draft) -> Iterable[Mistake]:
    """Yield what is no mistake and yet worth a look. For a draft without mistakes."""
    used = {target.upstream for route in draft.values["models"].values() for target in route.upstreams}
    for name in draft.values["upstreams"]:
        if name not in used:
            yield draft.noted(draft.keys["upstreams", name], f"no model uses the upstream {shown(name)}")
    yield from _slips(draft)
    if draft.values["environment"] is not Environment.TEST:
        for path in draft.literal:
            yield draft.noted(path, f"{path[-1]!r} stands in the file itself; write ${{VAR}} and keep it out of the file")


def _slips(draft: Draft) -> Iterable[Mistake]:
    """Yield what can be meant, and seldom is."""
    for name, upstream in draft.values["upstreams"].items():
        if upstream.kind is Kind.OPENAI and upstream.base_url is not None and urlsplit(upstream.base_url).path in ("", "/"):
            at: Path = ("upstreams", name, "base_url")
            yield draft.noted(at, "'base_url' has no path; most servers that speak like OpenAI are asked under /v1")
    for name, route in draft.values["models"].items():
        if ("models", name, "strategy") not in draft.places:  # who writes another one keeps the weights for a while
            for path, target in draft.items(("models", name, "upstreams"), route.upstreams):
                if target.weight != 1:
                    yield draft.noted((*path, "weight"), "'weight' counts only with strategy: weighted")


def _upstreams(draft: Draft) -> None:
    if not draft.names("upstreams") and ("upstreams",) in draft.places and not draft.mistakes:
        draft.mistake(("upstreams",), "'upstreams' is empty; a model needs one")
    for name, upstream in draft.values["upstreams"].items():
        path: Path = ("upstreams", name)
        if upstream.probe is not None and upstream.probe.path is not None and not _PATH.fullmatch(upstream.probe.path):
            draft.mistake((*path, "probe", "path"), "'path' must begin with / and hold no spaces, as in /health")
        if upstream.kind is Kind.ECHO:
            for key in ("base_url", "api_key", "api_version"):
                if getattr(upstream, key) is not None:
                    draft.mistake((*path, key), f"the kind echo is embedded: {key!r} has no use there; remove it")
            continue
        if upstream.base_url is not None:
            _address(draft, (*path, "base_url"), upstream.base_url)
        elif upstream.kind not in _KNOWS_ITS_URL and (*path, "base_url") not in draft.places:
            draft.mistake(draft.keys[path], f"the kind {upstream.kind} needs a 'base_url'")
        if upstream.api_key is not None and not _VISIBLE.fullmatch(upstream.api_key):
            draft.mistake((*path, "api_key"), "'api_key' cannot go into a header: only visible ASCII characters can")
        _ollama(draft, path, upstream)
        _azure(draft, path, upstream)


def _ollama(draft: Draft, path: Path, upstream: Upstream) -> None:
    if upstream.kind is Kind.OLLAMA and upstream.base_url is not None and upstream.base_url.rstrip("/").endswith("/api"):
        draft.mistake((*path, "base_url"), "'base_url' ends with /api; it is asked by its /v1, so leave that away")


def _address(draft: Draft, path: Path, text: str) -> bool:
    """Check an address without telling it: a password may stand in it (RFC 3986, 3.2.1). False for one that has a mistake."""
    try:
        problem = _wrong_url(urlsplit(text), text)
    except ValueError:
        problem = "is not a URL; is the port a number, and an IPv6 host in brackets?"
    if problem is not None:
        draft.mistake(path, f"{path[-1]!r} {problem}")
    return problem is None


def _wrong_url(url: SplitResult, text: str) -> str | None:
    if url.scheme not in ("http", "https") or "://" not in text:
        return "must begin with http:// or https://"
    if "@" in url.netloc:
        return "must hold no user or password; write 'api_key'"
    if "?" in text or "#" in text:
        return "must have no query and no fragment"
    if not url.hostname or not re.fullmatch(r"[A-Za-z0-9._:-]+", url.hostname) or url.netloc.endswith(":") or url.port == 0:
        return "has no host that can be"
    if not _VISIBLE.fullmatch(text) or "\\" in text:
        return "has a character that must be percent-encoded"
    ending = next((end for end in _ENDPOINTS if url.path.rstrip("/").endswith(end)), None)
    return f"ends with {ending}; the endpoint is added to it, so leave that away" if ending else None


def _azure(draft: Draft, path: Path, upstream: Upstream) -> None:
    """Azure has two APIs: a dated one whose paths name the deployment, and v1, which is OpenAI's (openai-node docs/azure.md)."""
    version, at = upstream.api_version, (*path, "api_version")
    if upstream.kind is not Kind.AZURE:
        if version is not None:
            draft.mistake(at, f"'api_version' is for the kind azure; {upstream.kind} has none")
        return
    if upstream.api_key is None and (*path, "api_key") not in draft.places:
        draft.mistake(draft.keys[path], "the kind azure needs an 'api_key'")
    if upstream.base_url is not None and "/deployments/" in upstream.base_url:
        draft.mistake((*path, "base_url"), "'base_url' names a deployment; the route's model does, so leave it away from /openai on")
    if version is None:
        return
    if not _API_VERSION.fullmatch(version):
        said = draft.written(at)
        draft.mistake(at, f"{said} is not the date of an API, as in 2024-10-21 or 2025-04-01-preview; the v1 API has none")
    elif upstream.base_url is not None and upstream.base_url.rstrip("/").endswith("/v1"):
        draft.mistake(at, "a dated API has no /v1 in its 'base_url'; remove one of them")


def _routes(draft: Draft) -> None:
    upstreams = draft.names("upstreams")
    if not draft.names("models") and ("models",) in draft.places and not draft.mistakes:
        draft.mistake(("models",), "'models' is empty; nothing could be asked for")
    for name, route in draft.values["models"].items():
        path: Path = ("models", name)
        _pattern(draft, draft.keys[path], name)
        targets: Path = (*path, "upstreams")
        if not route.upstreams and targets not in draft.kept:
            draft.mistake(targets, "the route names no upstream")
        for at, target in draft.items(targets, route.upstreams):
            if upstreams and target.upstream not in draft.values["upstreams"] and target.upstream not in upstreams:
                where = (*at, "upstream")
                draft.mistake(where, f"no upstream is called {draft.written(where)}{meant(target.upstream, upstreams)}")
        _price(draft, (*path, "price"), route.price)
        _prefix(draft, (*path, "strip_prefix"), name, route)
        for at, condition in draft.items((*path, "retry", "on"), route.retry.on):
            _retry(draft, at, condition)
        _edits(draft, path, route)


def _edits(draft: Draft, path: Path, route: Model) -> None:
    """What a route adds, replaces and removes."""
    for section in ("set", "force"):
        for key in FIXED_MEMBERS & getattr(route, section).keys():
            draft.mistake((*path, section), f"'{section}' may not hold {key!r}: it steers the exchange; a target's 'model' renames")
    for at, key in draft.items((*path, "drop"), route.drop):
        if key in FIXED_MEMBERS:
            draft.mistake(at, f"{draft.written(at)} cannot be dropped: it steers the exchange")
        elif key in route.force or key in route.set:
            draft.mistake(at, f"{draft.written(at)} is both added and dropped")


def _price(draft: Draft, path: Path, price: Price | None) -> None:
    """Check that amounts can be kept exactly (10⁻⁹ of the currency for a million tokens), and that nothing is said twice."""
    if price is None:
        return
    if not re.fullmatch("[A-Z]{3}", price.currency):
        draft.mistake(
            (*path, "currency"), f"{draft.written((*path, 'currency'))} is not a currency; write three capital letters, as in USD"
        )
    above: set[int] = set()
    all_rates: list[tuple[Path, Rates]] = [(path, price)]
    for at, tier in draft.items((*path, "tiers"), price.tiers):
        if tier.above in above:
            draft.mistake((*at, "above"), f"there is another tier above {draft.written((*at, 'above'))}")
        above.add(tier.above)
        all_rates.append((at, tier))
    all_rates += [((*path, "services", name), rates) for name, rates in price.services.items()]
    for at, rates in all_rates:
        for name in Rates.__struct_fields__:
            amount = getattr(rates, name)
            if amount is not None and (Decimal(repr(amount)) * 10**15 / price.per) % 1:
                draft.mistake((*at, name), f"{draft.written((*at, name))} is finer than a billionth for a million tokens")
    if price.input is None and price.output is None:
        draft.mistake(path, "the price has neither 'input' nor 'output'; write at least one, 0 for what is free")


def _prefix(draft: Draft, path: Path, name: str, route: Model) -> None:
    prefix = route.strip_prefix
    if prefix is not None and route.upstreams and all(target.model is not None for target in route.upstreams):
        draft.mistake(path, "'strip_prefix' has nothing to do: every upstream of the route has a 'model' of its own")
    elif prefix is not None and not name.startswith(prefix):
        draft.mistake(path, f"{shown(name)} does not begin with {draft.written(path)}")
    elif prefix == name:
        draft.mistake(path, f"nothing is left of {shown(name)} without it")


def _retry(draft: Draft, at: Path, condition: str | int) -> None:
    if isinstance(condition, int):
        if not 400 <= condition <= 599:
            draft.mistake(at, f"{draft.written(at)} is not a status worth a retry; those are 400 to 599")
    elif condition not in RETRY_WORDS:
        draft.mistake(at, f"{draft.written(at)} is not connect, timeout, 5xx or a status{meant(condition, RETRY_WORDS)}")


def _pattern(draft: Draft, at: Path | Scalar, pattern: str) -> bool:
    if "*" in pattern[:-1]:
        told_as = shown(at.text) if isinstance(at, Scalar) else draft.written(at)
        draft.mistake(at, f"{told_as}: a * stands at the end of a pattern only, and once")
        return False
    return True


def _aliases(draft: Draft) -> None:
    models = draft.names("models")
    exact = set(models)
    patterns = [model for model in models if model.endswith("*")]
    for name, target in draft.values["aliases"].items():
        path: Path = ("aliases", name)
        if "*" in name:
            draft.mistake(draft.keys[path], f"{shown(name)}: an alias is one name, not a pattern; write a route for a pattern")
        elif name in exact:
            draft.mistake(draft.keys[path], f"the alias {shown(name)} hides the model of that name")
        if "*" in target:
            draft.mistake(path, f"{draft.written(path)} is a pattern; an alias leads to one model")
        elif target in draft.values["aliases"]:
            draft.mistake(path, f"{draft.written(path)} is itself an alias; name the model")
        elif models and target not in exact and not any(covers(pattern, target) for pattern in patterns):
            draft.mistake(path, f"no model is called {draft.written(path)}{meant(target, models)}")


def _keys(draft: Draft) -> None:
    auth: Auth | None = draft.values["auth"]
    if auth is None:
        return
    routes = [*draft.names("models"), *draft.names("aliases")]
    names: set[str] = set()
    owners: dict[str, str] = {}
    for path, key in draft.items(("auth", "keys"), auth.keys):
        name = draft.written((*path, "name"))
        if key.name in names:
            draft.mistake((*path, "name"), f"the name {name} is there twice")
        if key.key in owners:
            draft.mistake((*path, "key"), f"the key is the same as that of {owners[key.key]}")
        if not _VISIBLE.fullmatch(key.key):
            draft.mistake((*path, "key"), "'key' cannot go into a header: only visible ASCII characters can")
        _expiry(draft, (*path, "expires"), key.expires)
        _one_unit(draft, (*path, "budget"), key.budget)
        names.add(key.name)
        owners.setdefault(key.key, name)
        if not key.models and (*path, "models") not in draft.kept:
            draft.mistake((*path, "models"), f'{name} may use no model; write ["*"] for all, or remove the key')
        _usable(draft, (*path, "models"), key.models, routes)
        _default(draft, (*path, "default_model"), key.default_model, routes)
    for path, rule in draft.items(("auth", "jwt"), auth.jwt):
        _usable(draft, (*path, "models"), rule.models, routes)
        _one_unit(draft, (*path, "budget"), rule.budget)


def _one_unit(draft: Draft, path: Path, budget: Budget | None) -> None:
    if budget is not None and (budget.amount is None) == (budget.tokens is None):
        draft.mistake(path, "a budget is money or tokens: write either 'amount' or 'tokens'")


def _usable(draft: Draft, path: Path, patterns: tuple[str, ...], routes: list[str]) -> None:
    """Check patterns of models that a caller may use."""
    for at, pattern in draft.items(path, patterns):
        if _pattern(draft, at, pattern) and routes and not any(covers(pattern, route) or covers(route, pattern) for route in routes):
            draft.mistake(at, f"no model is called {draft.written(at)}{meant(pattern, routes)}")


def _default(draft: Draft, path: Path, name: str | None, routes: list[str]) -> None:
    """Check what a request without a model means."""
    if name is None:
        return
    if "*" in name:
        draft.mistake(path, f"{draft.written(path)} is a pattern; name one model")
    elif routes and not any(covers(route, name) for route in routes):
        draft.mistake(path, f"no model is called {draft.written(path)}{meant(name, routes)}")


def _expiry(draft: Draft, path: Path, text: str | None) -> None:
    try:
        if text is not None:
            moment(text)
    except ValueError as error:
        draft.mistake(path, f"{draft.written(path)} {error}")


def _timezone(draft: Draft) -> None:
    try:
        zone(draft.values["timezone"])
    except ValueError as error:
        draft.mistake(("timezone",), f"{draft.written(('timezone',))} {error}")


def _listeners(draft: Draft) -> None:
    listeners: list[tuple[Path, str | None]] = [(("listen",), draft.values["listen"]), (("ops", "listen"), draft.values["ops"].listen)]
    found: list[tuple[Path, Address]] = []
    for path, text in listeners:
        if text is None:
            continue
        try:
            found.append((path, parse_address(text)))
        except ValueError as error:
            draft.mistake(path, f"{draft.written(path)} {error}")
    for (_, one), (path, other) in combinations(found, 2):
        if one.collides(other):
            draft.mistake(path, "'ops.listen' and 'listen' are the same address; the operator's port is another one, or off")


def _cors(draft: Draft) -> None:
    """An origin is compared to the letter with what browsers send (RFC 6454, 6.1): no path, no default port, lower case."""
    cors = draft.values["cors"]
    if cors is None:
        return
    if not cors.origins and ("cors", "origins") not in draft.kept:
        draft.mistake(("cors",), "'cors' names no origin; write origins: [https://example.com], or remove it")
    for at, origin in draft.items(("cors", "origins"), cors.origins):
        if origin == "*":
            if cors.credentials:
                draft.mistake(at, "every page with credentials would be every page in the name of whoever visits it; name the origins")
            elif len(cors.origins) > 1:
                draft.mistake(at, "'*' says all; remove the others, or remove it")
        elif not _ORIGIN.fullmatch(origin) or re.fullmatch("http://.*:80|https://.*:443", origin):
            draft.mistake(
                at, f"{draft.written(at)} is not an origin; write https://example.com: lower case, no slash at the end, no default port"
            )


def _otel(draft: Draft) -> None:
    otel: Otel | None = draft.values["otel"]
    if otel is None:
        return
    at: Path = ("otel", "endpoint")
    if _address(draft, at, otel.endpoint) and otel.endpoint.rstrip("/").endswith(("/v1/traces", "/v1/metrics")):
        draft.mistake(at, "'endpoint' ends with the path of one signal; /v1/traces and /v1/metrics are added to it, so leave that away")
    for name, value in otel.headers.items():
        path: Path = ("otel", "headers", name)
        if not _TOKEN.fullmatch(name):
            draft.mistake(path, f"{shown(name)} cannot be the name of a header")
        elif not _VALUE.fullmatch(value):
            draft.mistake(path, "this value cannot go into a header: only visible ASCII characters, and blanks between them, can")


def _storage(draft: Draft) -> None:
    path: Path = ("storage", "url")
    scheme, colon, rest = draft.values["storage"].url.partition(":")
    if colon and scheme.partition("+")[0] in NOT_BUILT_DATABASES:
        draft.mistake(path, told(scheme))
    elif not colon or scheme != "sqlite" or not rest.startswith("///") or not rest.strip("/"):
        draft.mistake(path, "'url' is not a database; write sqlite:///proxyd.db or, with four slashes, sqlite:////var/lib/proxyd/proxyd.db")
    elif rest.endswith("/") or rest == "///:memory:" or re.search(r"[?#]", rest):
        draft.mistake(path, "'url' must name a file on a disk, and nothing else: no options, no memory")


_CHECKS: tuple[Callable[[Draft], None], ...] = (
    *(_upstreams, _routes, _aliases, _keys, check_issuers, _timezone),
    *(_listeners, _cors, _otel, _storage),
)
