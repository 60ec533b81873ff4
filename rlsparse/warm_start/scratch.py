"""A small new model: a byte-level tokenizer trained on the texts of a task, and a Qwen2 with random weights."""

from collections.abc import Sequence
from typing import Any

import torch

from rlsparse.batch import Problem
from rlsparse.config.schema import ScratchConfig


def new_tokenizer(problems: Sequence[Problem], vocabulary: int) -> Any:
    """Return a tokenizer of Qwen2 trained on the texts of the problems.

    It splits numbers into digits, has whole words as tokens, and encodes all other text as bytes. It must be of the
    class Qwen2Tokenizer, which ``AutoTokenizer`` takes for every Qwen2 folder.

    Args:
        problems: their questions and solutions are the texts.
        vocabulary: number of tokens.
    """
    from transformers import Qwen2Tokenizer

    texts = (one.question + one.solution for one in problems)
    blank = Qwen2Tokenizer(bos_token=None, unk_token=None)
    return blank.train_new_from_iterator(texts, vocab_size=vocabulary, show_progress=False)


def new_model(config: ScratchConfig, tokenizer: Any, seed: int) -> Any:
    """Return a Qwen2 of the given size with tied embeddings and random weights."""
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
