"""Masked-language-model examples: tokens hidden as BERT does it, and their batches."""

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from toolkit.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def masked_count(length: int, probability: float, specials: int = 2) -> int:
    """How many of a sequence's tokens are to be guessed: a share, at least one.

    Args:
        length: Its tokens.
        probability: The share.
        specials: How many of the tokens are [CLS] and [SEP].
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
    """Hides tokens to be guessed: BERT's rule (Devlin et al. 2019, section 3.1).

    `masked_count` tokens are picked, never a special one. Of these 80 % become [MASK], 10 % a random word, 10 % stay.

    Args:
        ids: [length].
        rng: Decides what is picked, and its fate.
        tokenizer: Knows the special tokens.
        probability: Share of the tokens.
        specials: How many of the tokens are [CLS] and [SEP].
        whole_words: Pick words with all of their pieces, as many as there is room for.

    Returns:
        `input_ids` and `labels`, both [length] int64; labels are -100 where nothing is to be guessed.
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


def sampled_count(length: int, masked: int, share: float) -> int:
    """At how many of a sequence's tokens student and teacher are compared.

    Args:
        length: Its tokens.
        masked: How many of them are to be guessed.
        share: Of the tokens.
    """
    return max(masked, round(share * length))


def sample_positions(labels: np.ndarray, rng: np.random.Generator, count: int) -> np.ndarray:
    """`count` positions of a sequence, bool [length]: all that are to be guessed, and others by chance."""
    chosen = labels != -100
    others = np.flatnonzero(~chosen)
    lacking = min(len(others), max(0, count - int(chosen.sum())))
    chosen[rng.choice(others, size=lacking, replace=False)] = True
    return chosen


def require_word_marks(tokenizer: "PreTrainedTokenizerFast") -> None:
    """Whole words need a vocabulary that marks which pieces go on with a word.

    Raises:
        UserError: This one does not.
    """
    _continues(tokenizer)


@lru_cache(maxsize=4)
def _facts(tokenizer: "PreTrainedTokenizerFast") -> tuple[np.ndarray, int, int]:
    """Vocabulary id -> whether it is no special token; [MASK]'s id; the size. A tokenizer takes its time to answer."""
    ordinary = np.ones(max(tokenizer.get_vocab().values()) + 1, dtype=bool)  # more than words where ids have gaps
    ordinary[tokenizer.all_special_ids] = False
    assert isinstance(tokenizer.mask_token_id, int)
    return ordinary, tokenizer.mask_token_id, tokenizer.vocab_size


@lru_cache(maxsize=4)
def _continues(tokenizer: "PreTrainedTokenizerFast") -> np.ndarray:
    """Vocabulary id -> whether it goes on with the word before it: `##` of WordPiece, no `Ġ` or `▁` elsewhere."""
    vocabulary = tokenizer.get_vocab()
    pieces = np.zeros(max(vocabulary.values()) + 1, dtype=bool)
    begin = next((mark for mark in ("##", "Ġ", "▁") if any(word.startswith(mark) for word in vocabulary)), None)
    if begin is None:
        raise UserError(
            "this tokenizer does not mark which of its pieces begin a word",
            where="corpus.whole_word_masking",
            instead="whole_word_masking: false",
        )
    for word, number in vocabulary.items():
        pieces[number] = word.startswith(begin) == (begin == "##")
    return pieces


def _whole_words(words: np.ndarray, goes_on: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Positions of whole words in random order, those that still fit into `count`; at least one word."""
    starts = np.flatnonzero(~goes_on | (np.diff(words, prepend=-2) > 1))
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
