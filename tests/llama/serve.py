"""Run llama.cpp's HTTP server over one model on a free port, print where, and stay until the parent is gone.

Called as `python tests/llama/serve.py MODEL.gguf chat|embedding`.
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
    print(f"LISTENING {server.listening_address}", flush=True)
    sys.stdin.read()
    os._exit(0)  # the server's own threads have no end


if __name__ == "__main__":
    main()
