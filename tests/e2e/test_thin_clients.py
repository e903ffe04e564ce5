"""The clients that people have for protobuf, unchanged, against the real daemon: protobuf-es, connect-node, connect-web, Go.

Node's and Go's packages come from their registries; where these or the tools are missing, the tests are skipped.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from google.protobuf import descriptor_pb2

from proxyd.wire._pb import chat_pb2
from tests import browser
from tests.e2e.conftest import at, rigged
from tests.node import installed
from tests.origin import DONE, completion, delta, stream, usage_event, whole
from tests.process import KEY

if TYPE_CHECKING:
    from pathlib import Path

WORDS = [delta("Hello"), delta(" there"), delta("", finish="stop"), usage_event(4, 2)]
LIMITED = {"error": {"message": "Slow down.", "type": "rate", "param": None, "code": "rate_limit_exceeded"}}
PACKAGES = (
    "@connectrpc/connect@2.2.0",
    "@connectrpc/connect-node@2.2.0",
    "@connectrpc/connect-web@2.2.0",
    "@bufbuild/protobuf@^2.9",
    "esbuild",
)

# The schema as its compiled descriptor: what a generated file holds, without the generator.
SCHEMA = """
import { createFileRegistry, create, toBinary, fromBinary } from "@bufbuild/protobuf";
import { FileDescriptorProtoSchema } from "@bufbuild/protobuf/wkt";
import { sizeDelimitedDecodeStream } from "@bufbuild/protobuf/wire";
import { createClient, ConnectError } from "@connectrpc/connect";
const bytes = Uint8Array.from(atob(DESCRIPTOR), (c) => c.charCodeAt(0));
const registry = createFileRegistry(fromBinary(FileDescriptorProtoSchema, bytes), () => undefined);
const message = (name) => registry.getMessage("proxyd.v1." + name);
const Chat = registry.getService("proxyd.v1.ChatService"), Models = registry.getService("proxyd.v1.ModelService");
const ask = (model, more = {}) => ({ model, messages: [{ content: "Say something." }], ...more });

// Plain HTTP: fetch, and the decoder of delimited messages that protobuf-es has.
export async function plain(url, key) {
  const request = create(message("ChatCompletionRequest"), ask("es", { stream: true }));
  const response = await fetch(url + "/v1/chat/completions", {
    method: "POST", body: toBinary(message("ChatCompletionRequest"), request),
    headers: { "Content-Type": "application/protobuf", Authorization: "Bearer " + key },
  });
  const seen = { type: response.headers.get("content-type"), text: "", frames: 0 };
  for await (const chunk of sizeDelimitedDecodeStream(message("ChatCompletionChunk"), response.body)) {
    seen.text += chunk.content; seen.frames += 1;
    if (chunk.finishReason) { seen.finish = chunk.finishReason; seen.tokens = chunk.usage.completionTokens; }
  }
  return seen;
}

export async function rpc(transport) {
  const chat = createClient(Chat, transport), models = createClient(Models, transport), seen = {};
  seen.unary = (await chat.createChatCompletion(ask("rpc-unary"))).choices[0].message.content;
  seen.streamed = "";
  for await (const chunk of chat.streamChatCompletion(ask("rpc-stream"))) seen.streamed += chunk.content;
  seen.models = (await models.listModels({})).models.map((one) => one.id);
  const failed = async (call) => {
    try { await call(); } catch (error) {
      const [detail] = ConnectError.from(error).findDetails(message("Error"));
      return [error.code, error.rawMessage, detail?.code, detail?.status];
    }
  };
  seen.refused = await failed(() => chat.createChatCompletion(ask("rpc-limited")));
  seen.refusedStream = await failed(async () => { for await (const _ of chat.streamChatCompletion(ask("rpc-limited"))); });
  seen.late = await failed(() => chat.createChatCompletion(ask("rpc-slow"), { timeoutMs: 300 }));
  return seen;
}
"""

NODE = """
import { createConnectTransport, createGrpcWebTransport } from "@connectrpc/connect-node";
import { plain, rpc } from "./schema.mjs";
const [url, key] = process.argv.slice(2);
const interceptors = [(next) => (request) => { request.header.set("Authorization", "Bearer " + key); return next(request); }];
const options = { baseUrl: url, httpVersion: "1.1", interceptors };
console.log(JSON.stringify({
  plain: await plain(url, key),
  connect: await rpc(createConnectTransport({ ...options, useHttpGet: true })),
  json: await rpc(createConnectTransport({ ...options, useBinaryFormat: false })),
  web: await rpc(createGrpcWebTransport(options)),
}));
process.exit(0);
"""

PAGE = """
import { createConnectTransport, createGrpcWebTransport } from "@connectrpc/connect-web";
import { plain, rpc } from "./schema.mjs";
window.run = async (url, key) => {
  const interceptors = [(next) => (request) => { request.header.set("Authorization", "Bearer " + key); return next(request); }];
  const options = { baseUrl: url, interceptors };
  return { plain: await plain(url, key), connect: await rpc(createConnectTransport({ ...options, useHttpGet: true })),
           web: await rpc(createGrpcWebTransport(options)) };
};
"""


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    """A daemon with two models, whose answers are scripted."""
    names = ("es", "rpc-unary", "rpc-stream", "rpc-limited", "rpc-slow", "go")
    models = {name: {"upstream": "origin", "retry": {"attempts": 1}} for name in names}
    config = {"models": models, "cors": {"origins": ["*"]}}
    with rigged(tmp_path_factory.mktemp("thin"), lambda origin: {"upstreams": {"origin": at(origin)}, **config}) as found:
        yield found


@pytest.fixture(scope="module")
def modules(tmp_path_factory) -> Path:
    """A folder with the packages and the schema in it."""
    folder = installed(tmp_path_factory.mktemp("node"), *PACKAGES)
    (folder / "schema.mjs").write_text(SCHEMA.replace("DESCRIPTOR)", f"{json.dumps(_descriptor())})", 1))
    (folder / "client.mjs").write_text(NODE)
    (folder / "page.mjs").write_text(PAGE)
    return folder


def _descriptor() -> str:
    """The schema's descriptor as a generator is handed it: with the names that fields have in JSON."""
    file = descriptor_pb2.FileDescriptorProto.FromString(chat_pb2.DESCRIPTOR.serialized_pb)
    for message in file.message_type:
        known = chat_pb2.DESCRIPTOR.message_types_by_name[message.name].fields_by_name
        for field in message.field:
            field.json_name = known[field.name].json_name
    return base64.b64encode(file.SerializeToString()).decode()


def scripted(rig) -> None:
    rig.origin.on("es", stream(*WORDS, DONE))
    rig.origin.on("rpc-unary", whole(completion("Hello there")))
    rig.origin.on("rpc-stream", stream(*WORDS, DONE))
    rig.origin.on("rpc-limited", whole(json.dumps(LIMITED).encode(), status=429))
    rig.origin.on("rpc-slow", [5.0, *whole(completion("Too late"))])


def check(seen: dict) -> None:
    """What each client of each protocol must have seen."""
    assert seen.pop("plain") == {
        "type": "application/protobuf; delimited=true",
        "text": "Hello there",
        "frames": 2,
        "finish": 1,
        "tokens": 2,
    }
    for protocol, found in seen.items():
        assert (found["unary"], found["streamed"]) == ("Hello there", "Hello there"), protocol
        assert found["models"] == sorted(["es", "rpc-unary", "rpc-stream", "rpc-limited", "rpc-slow", "go"])
        for refused in (found["refused"], found["refusedStream"]):
            assert refused == [8, "Slow down.", "rate_limit_exceeded", 429], protocol
        assert found["late"][0] == 4, protocol  # deadline_exceeded, whoever noticed it first


def test_node(rig, modules):
    scripted(rig)
    command = ["node", "client.mjs", rig.url, KEY]
    done = subprocess.run(command, cwd=modules, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 0, done.stderr
    check(json.loads(done.stdout))


@pytest.mark.skipif(browser.found() is None, reason="no Chromium on this machine")
async def test_a_page_in_a_real_browser(rig, modules, tmp_path):
    scripted(rig)
    bundle = [modules / "node_modules" / ".bin" / "esbuild", "page.mjs", "--bundle", "--format=iife", "--minify"]
    made = subprocess.run(bundle, cwd=modules, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=True).stdout  # noqa: ASYNC221
    async with browser.opened(rig.url + "/health", tmp_path) as page:
        await page.run(made)
        check(await page.run(f"run({json.dumps(rig.url)}, {json.dumps(KEY)})"))


GO = """
package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"

	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	raw, err := os.ReadFile("chat.pb")
	must(err)
	file := &descriptorpb.FileDescriptorProto{}
	must(proto.Unmarshal(raw, file))
	schema, err := protodesc.NewFile(file, nil)
	must(err)
	kind := func(name string) protoreflect.MessageDescriptor { return schema.Messages().ByName(protoreflect.Name(name)) }
	ask := dynamicpb.NewMessage(kind("ChatCompletionRequest"))
	field := func(name string) protoreflect.FieldDescriptor { return ask.Descriptor().Fields().ByName(protoreflect.Name(name)) }
	ask.Set(field("model"), protoreflect.ValueOfString("go"))
	ask.Set(field("stream"), protoreflect.ValueOfBool(true))
	one := dynamicpb.NewMessage(kind("Message"))
	one.Set(one.Descriptor().Fields().ByName("content"), protoreflect.ValueOfString("Say something."))
	ask.Mutable(field("messages")).List().Append(protoreflect.ValueOfMessage(one))
	body, err := proto.Marshal(ask)
	must(err)
	request, err := http.NewRequest("POST", os.Args[1]+"/v1/chat/completions.pb", bytes.NewReader(body))
	must(err)
	request.Header.Set("Authorization", "Bearer "+os.Args[2])
	answer, err := http.DefaultClient.Do(request)
	must(err)
	reader := bufio.NewReader(answer.Body)
	for {
		chunk := dynamicpb.NewMessage(kind("ChatCompletionChunk"))
		if err := protodelim.UnmarshalFrom(reader, chunk); err == io.EOF {
			break
		} else {
			must(err)
		}
		fmt.Print(chunk.Get(chunk.Descriptor().Fields().ByName("content")))
		if reason := chunk.Get(chunk.Descriptor().Fields().ByName("finish_reason")).Enum(); reason != 0 {
			fmt.Printf("|%d", reason)
		}
	}
}
"""


def test_go_reads_the_frames(rig, tmp_path):
    if not shutil.which("go"):
        pytest.skip("Go is not installed")
    scripted(rig)
    rig.origin.on("go", stream(*WORDS, DONE))
    (tmp_path / "main.go").write_text(GO)
    (tmp_path / "chat.pb").write_bytes(chat_pb2.DESCRIPTOR.serialized_pb)
    for command in (
        ["go", "mod", "init", "thin"],
        ["go", "get", "google.golang.org/protobuf@v1.36.11"],
        ["go", "build", "-o", "thin", "."],
    ):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=180, stdin=subprocess.DEVNULL, check=False)
        if done.returncode and command[1] == "get":
            pytest.skip(f"the module could not be had: {done.stderr.strip()[-200:]}")
        assert done.returncode == 0, done.stderr
    done = subprocess.run(["./thin", rig.url, KEY], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "Hello there|1"), done.stderr
