"""The OpenAPI document and its page: all endpoints are there, and what is told of them is so."""

from __future__ import annotations

import base64
import hashlib
import json
import re

import jsonschema
import pytest

from proxyd.cli import main
from proxyd.model import Endpoint
from proxyd.web.app import ENDPOINTS
from proxyd.web.openapi import DETAILS, OPEN, SCHEMAS, document, page
from tests import browser
from tests.e2e.client import ask, chat
from tests.origin import DONE, Origin, completion, delta, stream, whole
from tests.process import KEY

DOCUMENT = document(ENDPOINTS)


def operations():
    return [(method, path, found) for path, methods in DOCUMENT["paths"].items() for method, found in methods.items()]


def validate(name, value):
    """Hold a value against one of the document's schemas."""
    jsonschema.validate(value, {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]})


@pytest.mark.parametrize("row", ENDPOINTS, ids=lambda row: f"{row.method} {row.path}")
def test_every_endpoint_is_in_the_document(row):
    (path,) = [path for path in DOCUMENT["paths"] if path == row.path or re.fullmatch(re.escape(row.path) + r"\{\w+\}", path)]
    operation = DOCUMENT["paths"][path][row.method.lower()]
    assert operation["summary"] == row.about
    arguments = {one["name"] for one in operation.get("parameters", []) if one["in"] == "path"}
    assert arguments == set(re.findall(r"\{(\w+)\}", path))
    assert ("requestBody" in operation) or not isinstance(row.serve, Endpoint)


def test_nothing_is_told_of_endpoints_that_are_not_there():
    there = {(row.method, row.path) for row in ENDPOINTS}
    assert set(DETAILS) <= there
    assert {path for _, path in there} >= OPEN
    used = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(DOCUMENT["paths"])))
    assert used <= set(SCHEMAS)
    names = [found["operationId"] for _, _, found in operations()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_schema_is_one(name):
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[name])


async def test_it_is_served_without_a_key_and_printed_the_same(daemon, capsys):
    answer = await ask(daemon.url, "/openapi.json", method="GET", Authorization="")
    assert answer.status == 200
    assert main(["openapi"]) == 0
    assert answer.json() == json.loads(capsys.readouterr().out) == json.loads(json.dumps(DOCUMENT))


async def test_what_endpoints_answer_is_as_the_document_says(daemon, origin: Origin):
    origin.on("m", whole(completion("Hello.")))
    for method, path, found in operations():
        if method != "get" or "{" in path:
            continue
        answer = await ask(daemon.url, path, method="GET", Authorization="" if found.get("security") == [] else f"Bearer {KEY}")
        assert answer.status == 200, path
        media = answer.headers["content-type"].partition(";")[0]
        content = found["responses"]["200"]["content"]
        assert media in content, path
        if "$ref" in content[media].get("schema", {}):
            validate(content[media]["schema"]["$ref"].split("/")[-1], answer.json())
    answered = await ask(daemon.url, "/v1/chat/completions", chat("m"))
    validate("Answer", answered.json())
    validate("ChatRequest", chat("m"))
    for broken in (
        await ask(daemon.url, "/v1/chat/completions", {"model": "m", "messages": []}, Authorization="Bearer wrong"),
        await ask(daemon.url, "/v1/nothing", method="GET"),
    ):
        validate("Error", broken.json())


async def test_where_a_key_is_needed_the_document_says_so(daemon):
    for method, path, found in operations():
        body = {} if method == "post" else None
        answer = await ask(daemon.url, re.sub(r"\{\w+\}", "x", path), body, method=method.upper(), Authorization="Bearer wrong")
        assert (answer.status == 401) == (found.get("security") != []), (method, path)


async def test_the_page_may_do_what_it_does_and_nothing_else(daemon):
    answer = await ask(daemon.url, "/docs", method="GET", Authorization="")
    text, policy = page()
    assert (answer.status, answer.body) == (200, text)
    assert answer.headers["content-security-policy"].encode() == policy
    assert b"default-src 'none'" in policy
    assert b"unsafe" not in policy
    for tag in (b"script", b"style"):
        (inside,) = re.findall(b"<" + tag + b">(.*?)</" + tag + b">", text, re.DOTALL)
        assert base64.b64encode(hashlib.sha256(inside).digest()) in policy
    assert not re.search(rb"""(?:src|href)=["'](?!/openapi.json)|[ :]url\(|@import|https?://|innerHTML|eval\(|\son\w+=["']""", text)


@pytest.mark.skipif(browser.found() is None, reason="no Chromium on this machine")
async def test_the_page_works_in_a_real_browser(daemon, origin: Origin, tmp_path):
    origin.on("*", stream(delta("Hel"), delta("lo", finish="stop"), DONE))
    async with browser.opened(f"{daemon.url}/docs#post_v1_chat_completions", tmp_path) as shown:
        await shown.until("document.querySelectorAll('details').length > 0")
        assert await shown.run("[...document.querySelectorAll('.path')].map(one => one.textContent)") == [
            path for group in _grouped() for path in group
        ]
        await shown.run(f"key.value = {KEY!r}; key.onchange()")
        await shown.run("document.querySelector('textarea').value = JSON.stringify({model: 'm', stream: true, messages: []})")
        await shown.run("document.querySelectorAll('details[open] button')[2].click()")
        assert "curl -N -X POST" in await shown.run("document.querySelector('details[open] pre').textContent")
        await shown.run("document.querySelector('details[open] button').click()")
        answered = await shown.until(
            "(t => t.includes('[DONE]') && t)([...document.querySelectorAll('details[open] pre')].at(-1).textContent)"
        )
        assert answered.startswith("200 OK\nX-Request-Id: req_")
        assert '"Hel"' in answered
        await shown.run("for (const one of document.querySelectorAll('details')) one.open = true")
        assert await shown.run("new Promise(done => setTimeout(() => done(document.querySelectorAll('table').length), 100))") > 5
        assert shown.errors == []


def _grouped():
    groups: dict[str, list[str]] = {}
    for _, path, found in operations():
        groups.setdefault(found["tags"][0], []).append(path)
    return groups.values()
