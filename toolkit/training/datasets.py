"""Training data of a run: labelled examples, or masked sequences."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from toolkit.data.batches import (
    KD_POSITIONS,
    LABEL_KEYS,
    TEACHER_LOGITS,
    TOGETHER,
    Batch,
    model_inputs,
    pad,
    pad_masked,
)
from toolkit.data.corpus.sequences import AnySequences, MixedSequences, epoch_items
from toolkit.data.kinds.token_classification import Tokens
from toolkit.data.masking import mask_tokens, masked_count, sample_positions, sampled_count
from toolkit.data.sampler import LengthGroupedDataset, MixedDataset
from toolkit.data.tasks import Split
from toolkit.models.task_heads import pad_logits
from toolkit.recipe import Corpus, Positions, Sample, Train
from toolkit.training.hardware import device

_UNMASKED_BATCH = 32  # examples
_NUMBER = "number"  # key of the index of an example


@dataclass(frozen=True)
class TrainingData:
    """Training data of a run.

    Attributes:
        stream: The examples in training order.
        collate: Examples -> batch.
        steps: Number of optimizer steps.
        mix: The sequences, if they are those of a mixed corpus.
    """

    stream: LengthGroupedDataset | MixedDataset
    collate: Callable[[list[dict[str, Any]]], Batch]
    steps: int
    mix: MixedSequences | None = None

    def tokens_seen(self) -> int:
        """Returns the number of tokens of all examples of the run, without padding."""
        return int(sum(self.stream.step_lengths(step).sum() for step in range(self.steps)))

    def passes(self) -> list[str]:
        """Returns a message for each source of a mixed corpus: how often the run passes through it."""
        if self.mix is None or not isinstance(self.stream, MixedDataset):
            return []
        return [f"{name}: {n:.1f} passes" for name, n in zip(self.mix.names, self.stream.passes(), strict=True)]

    def by_source(self) -> dict[str, dict[str, float]]:
        """Returns the size of each source of a mixed corpus and what the run sees of it, for the manifest."""
        if self.mix is None or not isinstance(self.stream, MixedDataset):
            return {}
        tokens, passes, total = self.stream.tokens(), self.stream.passes(), self.tokens_seen()
        return {
            f"corpus source {number}: {name}": {
                "train_sequences": len(part),
                "train_tokens": part.tokens,
                "tokens_seen": tokens[number],
                "share_seen": round(tokens[number] / total, 4),
                "passes": round(passes[number], 2),
            }
            for number, (name, part) in enumerate(zip(self.mix.names, self.mix.parts, strict=True))
        }


def steps_of(section: Train, examples: int) -> int:
    """Returns the number of optimizer steps that `steps` or `epoch` amounts to."""
    return section.steps or (section.epoch or 0) * steps_per_epoch(section, examples)


def steps_per_epoch(section: Train, examples: int) -> int:
    """Returns the number of optimizer steps per epoch."""
    return math.ceil(examples / (section.batch_size * section.gradient_accumulation_steps))


def task_data(
    examples: Split, pad_id: int, section: Train, seed: int, logits_of: Callable[[int], np.ndarray] | None = None
) -> TrainingData:
    """Returns labelled examples; the losses are averaged over the examples of an optimizer step.

    Those of token classification are averaged over its tokens with a tag, as a long sentence has many. Examples that
    belong together (the texts of a pair, candidates of a query) count as one, and follow each other in a batch.

    Args:
        examples: The train split.
        pad_id: The tokenizer's padding id.
        section: Number of steps and batch size.
        seed: Seed of the sampling order.
        logits_of: Index of an example -> its cached teacher logits; None: there are none.
    """
    groups = examples.groups
    together = groups.shape[1]
    steps = steps_of(section, len(groups))
    lengths = examples.lengths[groups].max(axis=1)
    stream = _stream(lengths, lambda i, _: {_NUMBER: i}, section, steps, seed)
    rows = float(section.batch_size * section.gradient_accumulation_steps)
    tagged = examples.tagged if isinstance(examples, Tokens) else None

    def collate(features: list[dict[str, Any]]) -> Batch:
        items = rows
        if tagged is not None:
            items = float(max(1, tagged[stream.step_indices(features[0]["step"])].sum()))
        numbers = [int(number) for f in features for number in groups[f[_NUMBER]]]
        batch: Batch = pad([examples[number] for number in numbers], pad_id)
        batch |= {"items": items, "examples": rows * together}
        if together > 1:
            batch[TOGETHER] = together
        if logits_of is not None:
            batch[TEACHER_LOGITS] = pad_logits([logits_of(number) for number in numbers], examples.per_token)
        return batch

    return TrainingData(stream, collate, steps)


def mlm_data(
    sequences: AnySequences,
    tokenizer: Any,
    corpus: Corpus,
    positions: Positions,
    section: Train,
    seed: int,
) -> TrainingData:
    """Returns masked sequences; the label loss is averaged over the masked tokens of an optimizer step.

    Args:
        sequences: The train split.
        tokenizer: The tokenizer of the sequences.
        corpus: Masking probability and whole-word masking.
        positions: Where student and teacher are compared; the KD loss is averaged over these tokens.
        section: Number of steps and batch size.
        seed: Seed of the sampling order and of masking.
    """
    fraction = positions.sample if isinstance(positions, Sample) else None
    steps = steps_of(section, epoch_items(sequences))
    probability, whole_words = corpus.mlm_probability, corpus.whole_word_masking
    specials, lengths = np.broadcast_to(sequences.specials, len(sequences)), sequences.lengths

    def item(index: int, rng: np.random.Generator) -> dict[str, Any]:
        example, special = sequences.example(index), int(specials[index])
        ids = example["input_ids"]
        example |= mask_tokens(ids, rng, tokenizer, probability, specials=special, whole_words=whole_words)
        if fraction is None:
            return example
        return example | {KD_POSITIONS: sample_positions(example["labels"], rng, compared(len(ids), special))}

    def compared(length: int, special: int) -> int:
        masked = masked_count(length, probability, special)
        if positions == "masked":
            return masked
        return length if fraction is None else sampled_count(length, masked, fraction)

    stream: LengthGroupedDataset | MixedDataset
    if isinstance(sequences, MixedSequences):
        stream = MixedDataset(
            [part.lengths for part in sequences.parts],
            item,
            shares=sequences.shares,
            longest=sequences.longest,
            batch_size=section.batch_size,
            steps=steps,
            accumulation=section.gradient_accumulation_steps,
            seed=seed,
        )
    else:
        stream = _stream(lengths, item, section, steps, seed)

    def collate(features: list[dict[str, Any]]) -> Batch:
        step = stream.step_indices(features[0]["step"])
        sizes = [(int(lengths[i]), int(specials[i])) for i in step]
        masked = float(sum(masked_count(length, probability, special) for length, special in sizes))
        kd_items = float(sum(compared(length, special) for length, special in sizes))
        counts = {"items": masked, "kd_items": kd_items, "examples": float(len(sizes))}
        examples = [example for feature in features for example in feature.get("examples", [feature])]
        return pad_masked(examples, tokenizer.pad_token_id) | counts

    return TrainingData(stream, collate, steps, sequences if isinstance(sequences, MixedSequences) else None)


def _stream(lengths: np.ndarray, item: Any, section: Train, steps: int, seed: int) -> LengthGroupedDataset:
    return LengthGroupedDataset(
        lengths,
        item,
        batch_size=section.batch_size,
        steps=steps,
        accumulation=section.gradient_accumulation_steps,
        seed=seed,
    )


def unmasked_batches(examples: Sequence[Mapping[str, Any]], pad_id: int) -> list[Batch]:
    """Returns the model inputs of examples in batches of similar length, each with its `attention_mask`.

    Sources of a mix differ in their inputs (`token_type_ids`), so a batch has examples of one kind.

    Args:
        examples: Tokenised examples; their labels are left out.
        pad_id: The tokenizer's padding id.
    """
    plain = [{name: np.asarray(e[name]) for name in e if name not in LABEL_KEYS} for e in examples]
    batches = []
    for kind in dict.fromkeys(tuple(example) for example in plain):
        alike = sorted((e for e in plain if tuple(e) == kind), key=lambda example: len(example["input_ids"]))
        for first in range(0, len(alike), _UNMASKED_BATCH):
            rows = [
                e | {"attention_mask": np.ones_like(e["input_ids"])} for e in alike[first : first + _UNMASKED_BATCH]
            ]
            batches.append(model_inputs(pad(rows, pad_id)))
    return batches


def on_device(batches: Sequence[Batch]) -> list[Batch]:
    """Returns batches on the device of the training."""
    return [{name: tensor.to(device()) for name, tensor in batch.items()} for batch in batches]
