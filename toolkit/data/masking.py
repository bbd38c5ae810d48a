"""Token masking for masked language modelling, and sampled positions for distillation."""

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from toolkit.core.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast


def masked_count(length: int, probability: float, specials: int = 2) -> int:
    """Returns how many tokens of a sequence are masked: a fraction, at least one.

    Args:
        length: Number of tokens of the sequence.
        probability: Fraction of the tokens without [CLS] and [SEP].
        specials: Number of [CLS] and [SEP] tokens in the sequence.
    """
    return max(1, round(probability * (length - specials)))


def mask_tokens(
    ids: np.ndarray,
    rng: np.random.Generator,
    tokenizer: "PreTrainedTokenizerFast",
    probability: float,
    *,
    specials: int = 2,
    whole_words: bool = False,
) -> dict[str, np.ndarray]:
    """Masks tokens by BERT's rule (Devlin et al. 2019, section 3.1).

    `masked_count` tokens are selected, never a special one: 80 % become [MASK], 10 % a random word, 10 % are unchanged.

    Args:
        ids: Token ids, [length].
        rng: Random generator for the selection and the replacement.
        tokenizer: The tokenizer that made the ids.
        probability: Fraction of the tokens without [CLS] and [SEP].
        specials: Number of [CLS] and [SEP] tokens in the sequence.
        whole_words: Select words with all of their pieces, as many as fit into the count.

    Returns:
        `input_ids` and `labels`, both [length] int64; labels are -100 at tokens that were not selected.
    """
    ordinary, mask_id, vocabulary = _facts(tokenizer)
    words = np.flatnonzero(ordinary[ids])
    count = min(len(words), masked_count(len(ids), probability, specials))
    if whole_words:
        picked = _whole_words(words, _continues(tokenizer)[ids[words]], count, rng)
    else:
        picked = rng.choice(words, size=count, replace=False)
    inputs, labels = ids.astype(np.int64), np.full(len(ids), -100, dtype=np.int64)
    labels[picked] = inputs[picked]
    fate = rng.random(len(picked))
    inputs[picked[fate < 0.8]] = mask_id
    swapped = picked[fate >= 0.9]
    inputs[swapped] = rng.integers(vocabulary, size=len(swapped))
    return {"input_ids": inputs, "labels": labels}


def sampled_count(length: int, masked: int, fraction: float) -> int:
    """Returns at how many tokens of a sequence student and teacher are compared.

    Args:
        length: Number of tokens of the sequence.
        masked: Number of masked tokens; all of them are compared.
        fraction: Fraction of the tokens to compare.
    """
    return max(masked, round(fraction * length))


def sample_positions(labels: np.ndarray, rng: np.random.Generator, count: int) -> np.ndarray:
    """Returns `count` positions of a sequence as bool [length]: all masked ones, and others at random."""
    chosen = labels != -100
    others = np.flatnonzero(~chosen)
    lacking = min(len(others), max(0, count - int(chosen.sum())))
    chosen[rng.choice(others, size=lacking, replace=False)] = True
    return chosen


def require_word_marks(tokenizer: "PreTrainedTokenizerFast | Tokenizer") -> None:
    """Checks that the vocabulary marks the pieces that continue a word, as whole-word masking requires.

    Raises:
        UserError: The vocabulary has no such marks.
    """
    _continues(tokenizer)


@lru_cache(maxsize=4)
def _facts(tokenizer: "PreTrainedTokenizerFast") -> tuple[np.ndarray, int, int]:
    """Vocabulary id -> whether it is not a special token; id of [MASK]; vocabulary size. Cached: slow to compute."""
    ordinary = np.ones(max(tokenizer.get_vocab().values()) + 1, dtype=bool)  # > vocabulary size if ids have gaps
    ordinary[tokenizer.all_special_ids] = False
    assert isinstance(tokenizer.mask_token_id, int)
    return ordinary, tokenizer.mask_token_id, tokenizer.vocab_size


@lru_cache(maxsize=4)
def _continues(tokenizer: "PreTrainedTokenizerFast | Tokenizer") -> np.ndarray:
    """Vocabulary id -> whether it continues the word before it: `##` in WordPiece, no `Ġ` or `▁` elsewhere."""
    vocabulary = tokenizer.get_vocab()
    pieces = np.zeros(max(vocabulary.values()) + 1, dtype=bool)
    begin = next((mark for mark in ("##", "Ġ", "▁") if any(word.startswith(mark) for word in vocabulary)), None)
    if begin is None:
        raise UserError(
            "the tokenizer does not mark which pieces begin a word",
            where="corpus.whole_word_masking",
            instead="whole_word_masking: false",
        )
    for word, number in vocabulary.items():
        pieces[number] = word.startswith(begin) == (begin == "##")
    return pieces


def _whole_words(words: np.ndarray, continues: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Positions of whole words in random order, as many words as fit into `count`; at least one."""
    starts = np.flatnonzero(~continues | (np.diff(words, prepend=-2) > 1))
    groups = np.split(words, starts[1:]) if len(starts) else [words]
    picked: list[np.ndarray] = []
    room = count
    for number in rng.permutation(len(groups)):
        if len(groups[number]) <= room or not picked:
            picked.append(groups[number])
            room -= len(groups[number])
        if room <= 0:
            break
    return np.concatenate(picked)
