"""The recipe's `corpus` section: which text is pre-trained on, and how it becomes sequences."""

from pydantic import Field, model_validator

from toolkit.recipe.fields import Count, Length, Number, Section, wrong


class Pairs(Section):
    """Pairs of segments and next-sentence prediction, as in BERT (Devlin et al. 2019, A.2)."""

    short_sequence_probability: Number = Field(
        0.1, ge=0, le=1, description="share of pairs of a random shorter length, so that short inputs are known too"
    )
    random_next_probability: Number = Field(
        0.5, gt=0, lt=1, description="share of pairs whose second segment is from another document"
    )


class Corpus(Section):
    """Text for pre-training: files of paragraphs, and/or the train texts of tasks."""

    files: tuple[str, ...] = Field(
        (),
        description="plain text, one paragraph a line, a blank line between documents; .xz/.gz/.bz2/.zst too; or "
        "hub:<dataset>[@revision]:<config>:<split>, read as it comes",
    )
    column: str = Field("text", description="column of a hub data set; each of its rows is a document")
    tasks: tuple[str, ...] = Field((), description="names of tasks whose train texts (never labels) are used")
    max_seq_length: Length = Field(128, description="tokens per sequence")
    mlm_probability: Number = Field(0.15, gt=0, lt=1, description="share of the tokens to be guessed")
    whole_word_masking: bool = Field(False, description="hide all pieces of a word, or none of them")
    pack: bool = Field(True, description="join paragraphs to full sequences; off: one sequence per text")
    pairs: Pairs | None = Field(None, description="pairs of segments in place of packed sequences; needs BERT's head")
    limit: Count | None = Field(None, description="use only this many sequences")

    @model_validator(mode="after")
    def _some_text(self) -> "Corpus":
        if not self.files and not self.tasks:
            raise wrong("needs `files`, `tasks` or both", instead="files: [text.txt]")
        if self.pairs is not None and not self.pack:
            raise wrong("pairs are made of whole documents, not of single texts", "pack", instead="pack: true")
        if self.pairs is not None and self.max_seq_length < 16:
            raise wrong("too short for two segments", "max_seq_length", instead="16 or more")
        return self
