"""Make a GGUF file of a llama too small to know anything: real tokenizer, real arithmetic, random weights, half a megabyte.

Called as `python tests/llama/tiny_model.py OUT.gguf`.

What it says is noise; that it is counted, streamed, stopped and cancelled like any model's answer is the point.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import gguf
import numpy as np

SPACE = "\u2581"  # SentencePiece writes a space so
SPECIALS = (("<unk>", gguf.TokenType.UNKNOWN), ("<s>", gguf.TokenType.CONTROL), ("</s>", gguf.TokenType.CONTROL))
SYLLABLES = tuple("".join(pair) for pair in itertools.product("bdfgklmnprst", "aeiou"))
SIGNS = SPACE + "\n.,:;!?'\"()-0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
TEMPLATE = "{% for message in messages %}<{{ message.role }}> {{ message.content }}\n{% endfor %}<assistant>"
DIMENSION = 48
HEADS = 3
HIDDEN = 96
BLOCKS = 2
CONTEXT = 16384


def vocabulary() -> list[tuple[str, float, gguf.TokenType]]:
    """Pieces with score and type; every byte has a fallback, so that any text can be told in tokens."""
    found = [(text, 0.0, kind) for text, kind in SPECIALS]
    found += [(f"<0x{byte:02X}>", 0.0, gguf.TokenType.BYTE) for byte in range(256)]
    pieces = [*(SPACE + syllable for syllable in SYLLABLES), *SYLLABLES]
    found += [(piece, -1.0 - rank / 10, gguf.TokenType.NORMAL) for rank, piece in enumerate(pieces)]
    found += [(sign, -500.0, gguf.TokenType.NORMAL) for sign in SIGNS]
    return found


def shapes(words: int) -> dict[str, tuple[int, ...]]:
    """Every matrix of the network (llama.cpp's own names), rows first."""
    square = (DIMENSION, DIMENSION)
    found: dict[str, tuple[int, ...]] = {"token_embd": (words, DIMENSION), "output": (words, DIMENSION)}
    for block in range(BLOCKS):
        found |= {f"blk.{block}.attn_{part}": square for part in ("q", "k", "v", "output")}
        found |= {f"blk.{block}.ffn_{part}": (HIDDEN, DIMENSION) for part in ("gate", "up")}
        found[f"blk.{block}.ffn_down"] = (DIMENSION, HIDDEN)
    return found


def make(path: Path) -> None:
    """Write the model; the same bytes each time."""
    words = vocabulary()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("proxyd-tests")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_vocab_size(len(words))
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(DIMENSION)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_block_count(BLOCKS)
    writer.add_head_count(HEADS)
    writer.add_rope_dimension_count(DIMENSION // HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text for text, _, _ in words])
    writer.add_token_scores([score for _, score, _ in words])
    writer.add_token_types([int(kind) for _, _, kind in words])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    chance = np.random.default_rng(20)
    for name, shape in shapes(len(words)).items():
        writer.add_tensor(name + ".weight", (0.25 * chance.standard_normal(shape)).astype(np.float32))
    norms = ["output_norm", *(f"blk.{block}.{part}_norm" for block in range(BLOCKS) for part in ("attn", "ffn"))]
    for name in norms:
        writer.add_tensor(name + ".weight", np.ones(DIMENSION, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    make(Path(sys.argv[1]))
