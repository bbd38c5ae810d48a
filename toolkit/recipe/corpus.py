"""Recipe section `corpus`: the pre-training text and how it is split into sequences."""

from pydantic import Field, model_validator

from toolkit.recipe.fields import Count, FileName, Length, Number, Section, wrong


class Pairs(Section):
    """Segment pairs for next-sentence prediction, as in BERT (Devlin et al. 2019, A.2)."""

    short_sequence_probability: Number = Field(
        0.1, ge=0, le=1, description="fraction of pairs with a random shorter length, to train on short inputs as well"
    )
    random_next_probability: Number = Field(
        0.5, gt=0, lt=1, description="fraction of pairs whose second segment is from another document"
    )


class Corpus(Section):
    """Pre-training text: files of paragraphs, the training texts of tasks, or both."""

    files: tuple[FileName, ...] = Field(
        (),
        description="plain text, one paragraph per line, blank line between documents; a table (.jsonl, .json, .csv, "
        ".tsv, .parquet), of which `column` is read; either optionally .xz/.gz/.bz2/.zst; or "
        "hub:<dataset>[@revision]:<config>:<split>, streamed",
    )
    column: str = Field("text", description="text column of tables and hub data sets; each row is one document")
    tasks: tuple[str, ...] = Field((), description="tasks whose training texts (never the labels) are used")
    max_seq_length: Length = Field(128, description="tokens per sequence")
    mlm_probability: Number = Field(0.15, gt=0, lt=1, description="fraction of tokens to predict")
    whole_word_masking: bool = Field(False, description="mask all subword tokens of a word together")
    pack: bool = Field(True, description="concatenate paragraphs to full sequences; false: one sequence per text")
    pairs: Pairs | None = Field(
        None, description="segment pairs (NSP) instead of packed sequences; needs BERT's pre-training head"
    )
    limit: Count | None = Field(None, description="maximum number of sequences")

    @model_validator(mode="after")
    def _some_text(self) -> "Corpus":
        if not self.files and not self.tasks:
            raise wrong("needs `files`, `tasks` or both", instead="files: [text.txt]")
        if self.pairs is not None and not self.pack:
            raise wrong("must be true with `pairs`, which need complete documents", "pack", instead="pack: true")
        if self.pairs is not None and self.max_seq_length < 16:
            raise wrong("too short for two segments", "max_seq_length", instead="16 or more")
        return self
