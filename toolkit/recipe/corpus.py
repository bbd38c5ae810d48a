"""Recipe section `corpus`: the pre-training text and how it is split into sequences."""

from typing import Any, Literal

from pydantic import Field, model_validator

from toolkit.recipe.fields import Count, FileName, Length, Number, Section, wrong

Shape = Literal["packed", "sentences", "texts", "pairs"]
_FILES = (
    "plain text, one paragraph per line, blank line between documents; a table (.jsonl, .json, .csv, "
    ".tsv, .parquet), of which `column` is read; either optionally .xz/.gz/.bz2/.zst; or "
    "hub:<dataset>[@revision]:<config>:<split>, streamed"
)
_COLUMN = "text column of tables and hub data sets; each row is one document"


class Pairs(Section):
    """Segment pairs for next-sentence prediction, as in BERT (Devlin et al. 2019, A.2)."""

    short_sequence_probability: Number = Field(
        0.1, ge=0, le=1, description="fraction of pairs with a random shorter length, to train on short inputs as well"
    )
    random_next_probability: Number = Field(
        0.5, gt=0, lt=1, description="fraction of pairs whose second segment is from another document"
    )


class Source(Section):
    """One source of a mixed corpus: its texts, their shape, and its share of the training tokens."""

    files: tuple[FileName, ...] = Field((), description=_FILES)
    column: str = Field("text", description=_COLUMN)
    tasks: tuple[str, ...] = Field((), description="tasks whose training texts (never labels, dev or tune) are used")
    shape: Shape = Field(
        "packed",
        description="packed: paragraphs concatenated to full sequences; sentences: single sentences; texts: one "
        "sequence per paragraph or text of a task; pairs: the rows of tasks, encoded as the task encodes them",
    )
    max_seq_length: Length = Field(128, description="maximum tokens per sequence")
    weight: Number = Field(
        1.0, gt=0, description="share of the training tokens that come from this source, relative to the other weights"
    )

    @model_validator(mode="after")
    def _has_its_texts(self) -> "Source":
        if not self.files and not self.tasks:
            raise wrong("needs `files`, `tasks` or both", instead="files: [text.txt]")
        if self.shape == "pairs" and self.files:
            raise wrong("have no pairs: a pair is a row of a task", "files", instead="tasks: […], or another shape")
        return self


class Corpus(Section):
    """Pre-training text: files of paragraphs, the training texts of tasks, or both; or a mix of several sources."""

    files: tuple[FileName, ...] = Field(
        (),
        description=_FILES,
    )
    column: str = Field("text", description=_COLUMN)
    tasks: tuple[str, ...] = Field((), description="tasks whose training texts (never the labels) are used")
    max_seq_length: Length = Field(128, description="tokens per sequence")
    mlm_probability: Number = Field(0.15, gt=0, lt=1, description="fraction of tokens to predict")
    whole_word_masking: bool = Field(False, description="mask all subword tokens of a word together")
    pack: bool = Field(True, description="concatenate paragraphs to full sequences; false: one sequence per text")
    pairs: Pairs | None = Field(
        None, description="segment pairs (NSP) instead of packed sequences; needs BERT's pre-training head"
    )
    limit: Count | None = Field(None, description="maximum number of sequences")
    sources: tuple[Source, ...] = Field(
        (), description="several sources with shapes and weights, mixed by tokens; alternative to files and tasks"
    )

    @property
    def parts(self) -> "tuple[Corpus | Source, ...]":
        """The sources, or the section itself if it is not a mix."""
        return self.sources or (self,)

    @property
    def all_files(self) -> tuple[str, ...]:
        """The files of all sources."""
        return tuple(file for part in self.parts for file in part.files)

    @property
    def all_tasks(self) -> tuple[str, ...]:
        """The tasks whose texts are read, each once."""
        return tuple(dict.fromkeys(task for part in self.parts for task in part.tasks))

    @property
    def longest(self) -> int:
        """Maximum tokens per sequence over all sources."""
        return max(part.max_seq_length for part in self.parts)

    @model_validator(mode="after")
    def _some_text(self) -> "Corpus":
        if self.sources:
            for key in _PLAIN:
                if getattr(self, key) != Corpus.model_fields[key].default:
                    raise wrong("has no effect beside `sources`", key, instead="a key of each source, or remove it")
            return self
        if not self.files and not self.tasks:
            raise wrong("needs `files`, `tasks` or both", instead="files: [text.txt]")
        if self.pairs is not None and not self.pack:
            raise wrong("must be true with `pairs`, which need complete documents", "pack", instead="pack: true")
        if self.pairs is not None and self.max_seq_length < 16:
            raise wrong("too short for two segments", "max_seq_length", instead="16 or more")
        return self


# Keys of a corpus that is not a mix.
_PLAIN = ("files", "column", "tasks", "max_seq_length", "pack", "pairs", "limit")


def corpus_settings(corpus: Corpus, exclude: set[str] | None = None) -> dict[str, Any]:
    """Returns the settings of a corpus that enter cache keys, as JSON values; each source has the number of its files.

    Without sources the key is left out, so that the keys of older runs stay valid.

    Args:
        corpus: The corpus.
        exclude: Keys to leave out.
    """
    values = corpus.model_dump(mode="json", exclude={"files", "sources"} | (exclude or set()))
    if corpus.sources:
        values["sources"] = [s.model_dump(mode="json") | {"files": len(s.files)} for s in corpus.sources]
    return values
