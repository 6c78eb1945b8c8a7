"""Trains the demo tokenizer: byte-level BPE with the GPT-2 splitting rule, one token per digit.

Conventions: ``<s>`` (id 0) is put in front of every encoded text, ``</s>`` (id 1) ends a document and is only
written by training, ``<pad>`` (id 2) fills batches. Merges are learned on text without digits, so no merge
joins two digits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BOS_TOKEN, EOS_TOKEN, PAD_TOKEN = "<s>", "</s>", "<pad>"

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'Question: ' + message['content'] | trim + '\\nAnswer:' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] | trim + '\\n\\n' }}"
    "{% else %}{{ message['content'] | trim + '\\n\\n' }}{% endif %}"
    "{% endfor %}"
)
"""Maps chat messages to the prompt format of the corpus; a system message becomes plain text before it."""


def train_tokenizer(texts: Iterable[str], vocabulary_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """Trains the tokenizer.

    Args:
        texts: Training documents.
        vocabulary_size: Number of tokens, special ones included.
        max_length: Longest sequence of the model in tokens.

    Returns:
        The tokenizer, ready to save.

    Raises:
        ValueError: If the texts are too few to fill the vocabulary.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[BOS_TOKEN, EOS_TOKEN, PAD_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator((re.sub(r"[0-9]+", "", text) for text in texts), trainer)
    if core.get_vocab_size() != vocabulary_size:
        raise ValueError(f"only {core.get_vocab_size()} tokens were learned, {vocabulary_size} were asked for")
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS_TOKEN} $A",
        pair=f"{BOS_TOKEN} $A $B",
        special_tokens=[(BOS_TOKEN, core.token_to_id(BOS_TOKEN))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS_TOKEN,
        eos_token=EOS_TOKEN,
        pad_token=PAD_TOKEN,
        chat_template=CHAT_TEMPLATE,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
