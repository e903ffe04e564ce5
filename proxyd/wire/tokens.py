"""Counting tokens offline: which encoding a model has, and how many tokens a text or a prompt is in it.

The vocabularies are data of this package; nothing here ever touches a network. Everything that counts is blocking code
for a worker thread (up to half a second for the largest texts; tiktoken lets go of the interpreter's lock meanwhile).
"""

from __future__ import annotations

import importlib.resources
import lzma
import threading
from typing import TYPE_CHECKING

from proxyd.model import Endpoint, Source
from proxyd.wire.prompt import ask_parts

if TYPE_CHECKING:
    import tiktoken

    from proxyd.model import Ask

EXACT_LIMIT = 400_000
"""Characters that are counted one and all; of more, samples are, and the count is an estimate."""

PIECES_LIMIT = 20_000
"""Separate texts of one prompt that are counted one by one; more are counted as one text."""

_SLICE = 50_000  # tiktoken's regex engine overflows its stack at some 700 000 spaces, and is quadratic-ish before
_SAMPLES = 16
_SAMPLE = 16_000
_BYTES_PER_TOKEN = 4  # 3.96 for JSON, 4.07 for prose, 4.27 for code, 3.17 for many languages, in o200k_base

# tiktoken's own table (model.py), repaired: `ft:gpt-4.1` is no cl100k model, and families it has not heard of are below.
# A name matches if it is the entry, or goes on after it with one of `-.@`. The first match counts.
_ENCODINGS: tuple[tuple[str, str], ...] = (
    *((name, "o200k_base") for name in ("gpt-4o", "gpt-4.1", "gpt-4.5", "gpt-5", "chatgpt-4o", "gpt-oss", "o1", "o3", "o4-mini")),
    *((name, "cl100k_base") for name in ("gpt-4", "gpt-3.5", "gpt-3.5-turbo", "gpt-35-turbo", "davinci-002", "babbage-002")),
    *((name, "cl100k_base") for name in ("text-embedding-ada-002", "text-embedding-3-small", "text-embedding-3-large")),
)
_STAND_IN = "o200k_base"
# Before a slash: who hands OpenAI's own models on. Behind any other name, `gpt-4` may be anything.
_HANDLERS = frozenset({"openai", "azure", "azure_ai", "openrouter", "github", "models", "litellm"})

# How each encoding cuts text before its merges: part of its definition (tiktoken_ext/openai_public.py).
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENDING}",
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENDING}",
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
)
_CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)",
    r"[^\r\n\p{L}\p{N}]?+\p{L}++",
    r"\p{N}{1,3}+",
    r" ?[^\s\p{L}\p{N}]++[\r\n]*+",
    r"\s++$",
    r"\s*[\r\n]",
    r"\s+(?!\S)",
    r"\s",
)
_PATTERNS = {"o200k_base": "|".join(_O200K), "cl100k_base": "|".join(_CL100K)}


def encoding_for(model: str) -> tuple[str, bool]:
    """Name the encoding to count `model` in, and whether it is the model's own; else it is a stand-in.

    Understands fine-tuned names (`ft:gpt-4o-mini:org::id`), Azure's `gpt-35-turbo`, and prefixes and suffixes of routers
    (`openai/gpt-4o:free`). Stand-ins are within -15 % and +40 % for modern tokenizers.
    """
    *before, name = model.strip().lower().split("/")
    name = name.removeprefix("ft:").partition(":")[0]
    for entry, encoding in _ENCODINGS:
        if name == entry or (name.startswith(entry) and name[len(entry)] in "-.@"):
            invented = entry in ("gpt-4", "gpt-3.5") and name[len(entry) :].startswith(".")
            return encoding if not invented else _STAND_IN, not invented and _HANDLERS.issuperset(before)
    return _STAND_IN, False


def vocabulary(name: str) -> dict[bytes, int]:
    """Read the ranks of an encoding's tokens from the package's data (the format is told in bench/vocab.py)."""
    packed = importlib.resources.files("proxyd.wire").joinpath("vocab", f"{name}.xz").read_bytes()
    flat = lzma.decompress(packed)
    count = int.from_bytes(flat[:4], "big")
    ranks: dict[bytes, int] = {}
    start = 4 + count
    for rank in range(count):
        end = start + flat[4 + rank]
        ranks[flat[start:end]] = rank
        start = end
    return ranks


class Tokenizers:
    """The tokenizers of one process, loaded when first needed (a quarter of a second each). Safe to share by threads.

    Without the extra `tokens` every count is an estimate by length.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loaded: dict[str, tiktoken.Encoding | None] = {}

    def count(self, text: str, model: str) -> tuple[int, Source]:
        """Count the tokens of `text`, as `model` would read it. Blocking.

        COUNTED if the model's own encoding did it; ESTIMATED if another stood in, if the text is longer than EXACT_LIMIT,
        or if there is no tokenizer.
        """
        return self._count_all([text], model)

    def count_prompt(self, ask: Ask, model: str | None = None) -> tuple[int, Source]:
        """Count the tokens that `ask` puts into the model (`model`: as the upstream knows it, else the ask's). Blocking.

        Chat by OpenAI's formula (exact for gpt-3.5 to gpt-4.1), tools by the cookbook's; completions and embeddings by
        their text or token arrays. Images, audio and files are estimated from their kind and size, never read as text.
        """
        name = model or ask.model
        parts = ask_parts(ask, name)
        count, source = self._count_all(parts.texts, name)
        if not parts.texts and ask.endpoint is not Endpoint.CHAT:
            source = Source.COUNTED  # token arrays were counted by whoever made them
        return count + parts.tokens, Source.ESTIMATED if parts.guessed else source

    def load(self, model: str) -> bool:
        """Have the tokenizer of a model ready before it is needed; whether there was anything to load. Blocking."""
        name, _ = encoding_for(model)
        loaded = name in self._loaded
        return self._encoding(name) is not None and not loaded

    def _count_all(self, texts: list[str], model: str) -> tuple[int, Source]:
        name, exact = encoding_for(model)
        size = sum(map(len, texts))
        encoding = self._encoding(name)
        if encoding is None:
            return sum(map(_by_length, texts)), Source.ESTIMATED
        try:
            if size > EXACT_LIMIT or len(texts) > PIECES_LIMIT:
                return _sampled(encoding, "\n".join(texts)), Source.ESTIMATED
            return sum(_tokens(encoding, text) for text in texts), Source.COUNTED if exact else Source.ESTIMATED
        except ValueError:  # the regex engine gave up
            return sum(map(_by_length, texts)), Source.ESTIMATED
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # a panic in Rust is no Exception, and nobody else's business
                raise
            return sum(map(_by_length, texts)), Source.ESTIMATED

    def _encoding(self, name: str) -> tiktoken.Encoding | None:
        if name in self._loaded:
            return self._loaded[name]
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = _load(name)
            return self._loaded[name]


def _load(name: str) -> tiktoken.Encoding | None:
    try:
        import tiktoken  # noqa: PLC0415 - an optional part, and 30 ms
    except ImportError:
        return None
    # Special tokens are left out: text is what users write, and `<|endoftext|>` in it is just letters.
    encoding = tiktoken.Encoding(name, pat_str=_PATTERNS[name], mergeable_ranks=vocabulary(name), special_tokens={})
    # The object keeps the ranks only for its repr and pickling: 30 MB that nobody reads.
    encoding._mergeable_ranks = {}  # noqa: SLF001
    return encoding


def _tokens(encoding: tiktoken.Encoding, text: str) -> int:
    count, start = 0, 0
    while start < len(text):
        end = start + _SLICE
        if end < len(text):
            # Before a word's space a cut costs nothing; elsewhere it can add a token.
            space = text.rfind(" ", end - 200, end)
            end = space if space > start and not text[space - 1].isspace() else end
        count += len(encoding.encode(text[start:end], disallowed_special=()))
        start = end
    return count


def _sampled(encoding: tiktoken.Encoding, text: str) -> int:
    """Count samples all over the text, and stretch the result to its length."""
    step = max(len(text) // _SAMPLES, 1)
    samples = [text[start : start + _SAMPLE] for start in range(0, len(text), step)]
    taken = sum(map(len, samples))
    return round(sum(_tokens(encoding, sample) for sample in samples) * len(text) / taken) if taken else 0


def _by_length(text: str) -> int:
    return -(-len(text.encode("utf-8", "replace")) // _BYTES_PER_TOKEN)
