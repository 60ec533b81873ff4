"""A small model from nothing: a byte-level tokenizer of the task's own texts, and a Qwen2 with random weights."""

from collections.abc import Sequence
from typing import Any

import torch

from rlsparse.batch import Problem
from rlsparse.config.schema import ScratchConfig


def new_tokenizer(problems: Sequence[Problem], vocabulary: int) -> Any:
    """Qwen2's tokenizer trained on the problems' texts: single digits, whole words, and bytes for all other text.

    It is the class that ``AutoTokenizer`` picks for a Qwen2 folder, whatever the folder says, so it must be this one.
    """
    from transformers import Qwen2Tokenizer

    texts = (one.question + one.solution for one in problems)
    blank = Qwen2Tokenizer(bos_token=None, unk_token=None)
    return blank.train_new_from_iterator(texts, vocab_size=vocabulary, show_progress=False)


def new_model(config: ScratchConfig, tokenizer: Any, seed: int) -> Any:
    """A Qwen2 of the given size with tied embeddings and random weights."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=len(tokenizer),
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.kv_heads,
                max_position_embeddings=config.context,
                tie_word_embeddings=True,
                bos_token_id=None,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        ).eval()
