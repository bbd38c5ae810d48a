"""The recipe's `corpus` section: which text is pre-trained on, and how it becomes sequences."""

from pydantic import Field, model_validator

from toolkit.recipe_base import Count, Number, Section, wrong


class Corpus(Section):
    """Text for pre-training: files of paragraphs, and/or the train texts of tasks."""

    files: tuple[str, ...] = Field((), description="plain text, one paragraph a line; .xz/.gz/.bz2 too")
    tasks: tuple[str, ...] = Field((), description="names of tasks whose train texts (never labels) are used")
    max_seq_length: Count = Field(128, description="tokens per sequence")
    mlm_probability: Number = Field(0.15, gt=0, lt=1, description="share of the tokens to be guessed")
    pack: bool = Field(True, description="join paragraphs to full sequences; off: one sequence per text")
    limit: Count | None = Field(None, description="use only this many sequences")

    @model_validator(mode="after")
    def _some_text(self) -> "Corpus":
        if not self.files and not self.tasks:
            raise wrong("needs `files`, `tasks` or both", instead="files: [text.txt]")
        return self
