"""Whether llama.cpp's tokenizer gives a GGUF file's texts the ids that the model was trained with."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["PROBES", "Disagreement", "ProbeResult", "compare_tokens"]

PROBES: tuple[str, ...] = (
    "",
    " ",
    "  ",
    "a",
    "Hello world",
    " Hello world",
    "  two spaces in front and two behind  ",
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park!",
    "tabs\tand\t\tmore\t \t mixed",
    "one\ntwo\n\nthree\n\n\nfour\r\nfive\r\n\r\nsix",
    " \n  \n   \n\t\n end",
    "trailing newline\n",
    "\n\nleading newlines",
    "many          spaces                    between",
    "0 1 12 123 1234 12345 123456 1234567 3.14159 1,000,000 1e-5 0x1F 2024-11-21 10:30:59",
    "I'm you're he's we'll they'd can't I'VE YOU'RE HE'S WE'LL THEY'D CAN'T 'tis 'Twas rock'n'roll",
    "camelCase PascalCase snake_case kebab-case SCREAMING_CASE iPhone eBay mRNA HTTPServer",
    "?!... !!! ??? --- ___ *** (([[{{}}]])) <<>> ## $100 50% a@b.c #tag & | ~ ` ^ \\ /",
    "\"quoted\" 'single' “curly” ‘quotes’ «guillemets» — dash – en … ellipsis",
    'def f(x: int) -> str:\n    return f"{x!r}"  # comment\n\n\nclass A:\n\tpass\n',
    "for (int i = 0; i < n; ++i) { a[i] += b[i] * 0.5f; } // loop",
    '{"key": [1, 2.5, null, true], "nested": {"a": "b\\n"}}',
    '<div class="x">text &amp; more</div> https://example.com/a?b=c&d=%20#e user@example.org',
    "SELECT * FROM t WHERE a >= 10 AND b LIKE '%x%';",
    "$\\frac{a}{b} = \\sum_{i=1}^{n} x_i^2$",
    "naïve café Zürich Ærø Łódź İstanbul ÀÉÎÕÜ ß",
    "Привет, мир! Это проверка. Съешь же ещё этих мягких булок.",
    "Γειά σου Κόσμε",
    "你好，世界！这是一个测试。繁體中文 漢字",
    "こんにちは世界。カタカナとひらがな",
    "안녕하세요 세계",
    "مرحبا بالعالم",
    "שלום עולם",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "Việt Nam đất nước",
    "🙂 😶‍🌫️ 👩‍👩‍👧‍👦 🇩🇪 ❤️ ✅ 🦙🦙🦙",
    "mixed 中文and英文 with123数字 и кириллица",
    "½ ² ³ ™ © ® € £ ¥ ° ± × ÷ ≤ ≥ ≠ ∞ ∑ √ π",
    "zero\u200bwidth soft\u00adhyphen non\u00a0breaking thin\u2009space ideographic\u3000space",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft",
    "pneumonoultramicroscopicsilicovolcanoconiosis antidisestablishmentarianism",
    "qzxjv wkpfh zzzyx bcdfg",
    "Question: What is 17 + 25?\nAnswer: 42\n\nQuestion: Is the sky blue?\nAnswer:",
    "A. red\nB. green\nC. blue\nD. none of the above",
)
"""Texts that make tokenizers disagree: whitespace, digits, contractions, case, code, scripts, emoji. All are in NFC."""

_DECOMPOSED = "cafe\u0301 Zu\u0308rich"


@dataclass(frozen=True)
class Disagreement:
    """A text with the ids that the model's tokenizer and llama.cpp give it."""

    text: str
    expected: tuple[int, ...]
    found: tuple[int, ...]

    def __str__(self) -> str:
        """The part around the first difference."""
        same = next(
            (place for place, pair in enumerate(zip(self.expected, self.found, strict=False)) if pair[0] != pair[1]),
            min(len(self.expected), len(self.found)),
        )
        start, end = max(0, same - 2), same + 6
        return (
            f"{self.text[:80]!r}: from token {start} on {list(self.expected[start:end])} expected, "
            f"{list(self.found[start:end])} got"
        )


@dataclass(frozen=True)
class ProbeResult:
    """What the comparison found.

    Attributes:
        disagreements: texts that must agree and do not.
        notes: differences in what few texts hold: special tokens' names, decomposed characters, spaces in front.
        texts: compared.
    """

    disagreements: tuple[Disagreement, ...]
    notes: tuple[str, ...]
    texts: int

    @property
    def problem(self) -> str:
        """What to say when texts disagree."""
        return f"ids differ on {len(self.disagreements)} of {self.texts} texts, first on {self.disagreements[0]}"


def compare_tokens(path: Path, tokenizer: Any, texts: Sequence[str]) -> ProbeResult:
    """Tokenize texts with a GGUF file's tokenizer, as llama.cpp runs it, and with the model's own.

    Texts are compared in Unicode's composed form, in which nearly all text is written: llama.cpp composes nothing. It
    also follows SentencePiece, which puts a space in front of every text, where transformers' ``Metaspace`` puts none
    in front of a space; such a difference is noted when the text agrees without its leading spaces.

    Args:
        path: a GGUF file; its vocabulary alone is loaded.
        tokenizer: the model's.
        texts: to compare besides :data:`PROBES`.

    Raises:
        ModelError: when llama.cpp cannot load the file.
        UnavailableError: when llama.cpp is not installed.
    """
    from agentic_compression.checkpoints.llama_library import LlamaModel

    with LlamaModel(path, vocab_only=True) as model:

        def difference(text: str) -> Disagreement | None:
            expected = tuple(tokenizer(text)["input_ids"])
            found = tuple(model.tokenize(text, add_special=True, parse_special=True))
            return None if expected == found else Disagreement(text, expected, found)

        composed = [unicodedata.normalize("NFC", text) for text in (*PROBES, *texts)]
        found = [wrong for text in composed if (wrong := difference(text)) is not None]
        indented = [wrong for wrong in found if wrong.text.startswith(" ") and not difference(wrong.text.lstrip(" "))]
        soft = indented if model.metadata("tokenizer.ggml.model") == "llama" else []
        notes = [f"llama.cpp reads spaces at the start of a text in another way: {wrong}" for wrong in soft[:1]]
        if wrong := difference(_DECOMPOSED):
            notes.append(f"llama.cpp does not compose Unicode characters, as the tokenizer does: {wrong}")
        names = dict.fromkeys(token for token in tokenizer.all_special_tokens if isinstance(token, str))
        if names and (wrong := difference("text".join(["", *names, ""]))):
            notes.append(f"around special tokens llama.cpp reads a text in another way: {wrong}")
        disagreements = tuple(wrong for wrong in found if wrong not in soft)
    return ProbeResult(disagreements, tuple(notes), len(composed))
