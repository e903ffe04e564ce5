"""The client side: HTTP in, HTTP out.

app            the clients' port: one table of endpoints
ops            the operator's port
connection     a client's connection: caps, flow control
downstream     one request and its answer

The forms of an answer:
encoder        what they have in common
paced          events, several a write
compressed     gzip and brotli around another one
protobuf       messages and frames
rpc            the methods of Connect and gRPC-Web
rpc_encoder    their envelopes and endings

What proxyd serves by itself:
document       how its documents are told and read
models         GET /v1/models
streams        /v1/streams: go on, stop
conversations  /v1/conversations
usage          GET /v1/usage
keys           keys, on the operator's port
database       the database, on the operator's port
openapi        /openapi.json, /docs (docs.html)
"""
