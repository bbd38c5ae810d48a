"""Intel Neural Compressor's YAML (1.x), read whole: files and flags become one recipe, and nothing is lost on the way.

Every key that a file has is used, or it is told in a line why it makes no difference, or it is an error.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from toolkit.core.yaml_document import KeyPath
from toolkit.recipe import Recipe
from toolkit.recipe.inc.explain import explain as explain
from toolkit.recipe.inc.inc_file import IncFlags as IncFlags
from toolkit.recipe.inc.inc_file import IncPlan, IncSource, read_source
from toolkit.recipe.inc.translate import translate
from toolkit.recipe.json_schema import RECIPE
from toolkit.recipe.messages import dotted, mistakes_in, together

# Keys that the translation leaves -> why they make no difference. The first that fits counts.
_HARMLESS: tuple[tuple[str, str], ...] = (
    (r"version", ""),
    (r"model\.(inputs|outputs)\b.*", "the model says itself what goes in and what comes out"),
    (r"model\.name", "the results are called by the first file's name, or by --name"),
    (r"device", "training uses a GPU where torch sees one; IRs are measured on the CPU"),
    (r"(\w+\.)?train\.(execution_mode|frequency)", "training here has no such choice"),
    (r".*\.postprocess\b.*", "what follows the logits is the task's"),
    (r"quantization\.calibration\.dataloader\b.*", "ranges are taken from --train-file, one example at a time"),
    (r".*\bdataloader\b.*", "data come from --train-file and --validation-file"),
    (r"(\w+\.)?train\.criterion\.\w*Crossentropy\w*\b.*", "the task's cross entropy is the loss with the labels"),
    (r"(\w+\.)?train\.criterion\.CrossEntropyLoss\b.*", "the task's cross entropy is the loss with the labels"),
    (r"(\w+\.)?train\b.*", "no stage trains by it: another section's counts, or the approach does not train"),
    (r"quantization\.recipes\.first_conv_or_matmul_quantization", "every product is, unless op_wise says otherwise"),
    (r"quantization\.recipes\.weight_correction", "weights stay as they are"),
    (r"quantization\.recipes\.\w+", "a BERT-like encoder has no such operation"),
    (r"quantization\.advance\b.*", "it is for TensorFlow"),
    (r".*\.compute_dtype\b.*", "products of 8-bit numbers are summed in 32 bits"),
    (r".*\.algorithm\b.*", "ranges are taken by minmax"),
    (r"tuning\.strategy\b.*", "the search goes by sensitivity, the most sensitive operation first"),
    (r"tuning\.tensorboard", "--track logs training curves for TensorBoard"),
    (r"tuning\.diagnosis\b.*", "the report shows every trial and every matrix"),
    (r"tuning\.workspace\.resume", "an interrupted run goes on by itself"),
    (r"tuning\.accuracy_criterion\.higher_is_better", "so it is for every metric here"),
    (
        r"tuning\.multi_objectives\.(weight|higher_is_better)",
        "one objective has no weight; smaller is better for costs",
    ),
    (r"tuning\.(accuracy_criterion|objective|multi_objectives|exit_policy)\b.*", "this file quantizes nothing"),
    (r"tuning\.random_seed", "another file's, or --seed, counts"),
    (r"tuning\.workspace\.path", "another file's counts"),
    (r"evaluation\.accuracy\.(iteration|configs)\b.*", "accuracy is always measured on every example"),
    (r"evaluation\.performance\.(warmup|iteration)", "speed is measured in rounds of seconds, all variants in turn"),
    (r"evaluation\.performance\.configs\b.*", "benchmark_app binds threads itself"),
)


def read_inc(paths: Sequence[Path], flags: IncFlags, placeholders: bool = False) -> IncPlan:
    """Reads files that belong together and translates them.

    Args:
        paths: INC's files; a section is taken from the one that has it.
        flags: What INC's scripts took on their command line.
        placeholders: Write `<model>` and the like where a flag is missing, instead of an error.

    Raises:
        UserError: A file is not INC's, says what cannot be honoured, or a flag is missing.
    """
    sources = [read_source(Path(path)) for path in paths]
    plan = translate(sources, flags, placeholders)
    for source in sources:
        # A list is told of once, not item by item.
        for path in dict.fromkeys(p[:-1] if isinstance(p[-1], int) else p for p in source.left_over()):
            _account_for(plan, source, path)
    _check(plan, ", ".join(map(str, paths)))
    return plan


def _check(plan: IncPlan, name: str) -> None:
    """The recipe must be one; what is wrong with it is told where INC's files say it."""
    document = plan.document(name)
    try:
        Recipe.model_validate(plan.recipe)
    except ValidationError as error:
        raise together(mistakes_in(error, document, RECIPE), name) from None


def _account_for(plan: IncPlan, source: IncSource, path: KeyPath) -> None:
    """A key that the translation did not use: a line that says why, or an error."""
    key = dotted(path)
    for pattern, why in _HARMLESS:
        if re.fullmatch(pattern, re.sub(r"\[\d+\]", "", key), re.DOTALL):
            if why:
                plan.note(source.where(*path), key, why)
            return
    raise source.refuse(path, "this cannot be done here", "leave the key out")
