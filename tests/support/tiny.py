"""Language models and a tokenizer of a few kilobytes, from a seed: nothing is downloaded."""

from __future__ import annotations

import os
from typing import Any

import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # before the hosts are imported, who read it then

WORDS = ["<pad>", "<eos>", "<unk>", *(f"w{number}" for number in range(61))]
CHAT = (
    "{% for m in messages %}{{ 'w1 ' if m['role'] == 'user' else 'w2 ' }}{{ m['content'] }} <eos> {% endfor %}"
    "{% if add_generation_prompt %}w2 {% endif %}"
)


def tokenizer() -> Any:
    """One token a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    found = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )
    found.chat_template = CHAT
    return found


def llama(seed: int, width: int = 16, vocabulary: int = len(WORDS), **config: Any) -> Any:
    """A causal language model of one layer, sharp enough to be told from a uniform one."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    made = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        tie_word_embeddings=False,
        **config,
    )
    return LlamaForCausalLM(made)


def prompts(count: int = 24) -> Any:
    """A data set of prompts of two to four words."""
    from datasets import Dataset

    return Dataset.from_dict({"prompt": [" ".join(f"w{i + k}" for k in range(2 + i % 3)) for i in range(count)]})
