"""Run llama.cpp's HTTP server over one model on a free port, say where, and stay until the parent is gone.

Called as `python tests/llama/serve.py MODEL.gguf chat|embedding FD`: the address goes to that descriptor, for the server's own
threads write to standard output when they please, in the middle of a line of ours too.
"""

from __future__ import annotations

import os
import sys

import xllamacpp


def main() -> None:
    """Serve until standard input closes: the parent need not be able to say goodbye."""
    params = xllamacpp.CommonParams()
    params.model.path = sys.argv[1]
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_ctx = 32768
    params.n_parallel = 2
    params.cpuparams.n_threads = 1
    params.warmup = False
    params.endpoint_slots = True
    if sys.argv[2] == "embedding":
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    server = xllamacpp.Server(params)
    with os.fdopen(int(sys.argv[3]), "w", encoding="utf-8") as told:
        told.write(server.listening_address)
    sys.stdin.read()
    os._exit(0)  # the server's own threads have no end


if __name__ == "__main__":
    main()
