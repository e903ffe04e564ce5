"""What an upstream's error answers mean: whose fault they are, and whether to ask again."""

import json

import pytest

from proxyd.errors import Blame
from proxyd.wire.faults import refusal

TGI = {"error": "Request failed during generation: CUDA out of memory", "error_type": "generation"}
LLAMA = {"error": {"code": 501, "message": "This server does not support embeddings", "type": "not_supported_error"}}


@pytest.mark.parametrize(
    ("status", "document", "blame", "retry"),
    [
        (424, TGI, Blame.UPSTREAM, True),
        (424, {"error": {"message": "The file is gone.", "code": "x"}}, Blame.CLIENT, False),
        (422, {"error": "Input validation error", "error_type": "validation"}, Blame.CLIENT, False),
        (501, LLAMA, Blame.UPSTREAM, True),
        (503, {"error": {"message": "Loading model", "code": 503}}, Blame.UPSTREAM, True),
    ],
)
def test_an_upstream_is_blamed_for_what_is_its_own_making(status: int, document: dict, blame: Blame, *, retry: bool) -> None:
    error = refusal(status, json.dumps(document).encode(), None)
    assert (error.status, error.blame, error.retry) == (status, blame, retry)
    said = document["error"]
    assert error.message == (said if isinstance(said, str) else said["message"])
