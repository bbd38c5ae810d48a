"""Check that all models and data files that a recipe names exist; all missing ones are reported at once."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

from toolkit.core.errors import UserError
from toolkit.data.kinds.retrieval import files_of, judged_files
from toolkit.data.resolved_inputs import ResolvedInputs
from toolkit.recipe import Recipe
from toolkit.recipe.references import corpus_files, task_files, unlabelled_files


def require_inputs(recipe: Recipe, models: Iterable[str], inputs: ResolvedInputs) -> None:
    """Checks that no input is missing.

    Args:
        recipe: The recipe.
        models: References to its models.
        inputs: Models and data files; those on the hub that are not cached do not count as missing.

    Raises:
        UserError: Some do not exist; the message lists all of them.
    """
    files = corpus_files(recipe.corpus, recipe.tasks) if recipe.corpus else []
    for name, task in recipe.tasks.items():
        for stage in ("transfer", "quantize"):
            files += unlabelled_files(recipe.section(stage, name))
        sets = [*map(files_of, task.retrieval.values()), *judged_files(task)]
        files += [*task_files(task), *itertools.chain.from_iterable(sets)]
    looked_up: list[tuple[Callable[[str], Any], str]] = [(inputs.model, source) for source in dict.fromkeys(models)]
    looked_up += [(inputs.file, spec) for spec in dict.fromkeys(files)]
    missing: list[UserError] = []
    for look_up, name in looked_up:
        try:
            look_up(name)
        except UserError as error:
            missing.append(error)
    if len(missing) == 1:
        raise missing[0]
    if missing:
        lines = "\n".join(f"  {error.where}: {error.what}" for error in missing)
        instead = "\n    ".join(dict.fromkeys(error.instead for error in missing if error.instead))
        raise UserError(f"{len(missing)} inputs of the recipe {recipe.name!r} are missing\n{lines}", instead=instead)
