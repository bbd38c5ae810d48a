"""Reader for Intel Neural Compressor 1.x YAML: translates files and flags to one recipe.

Every key of a file is either translated, or reported as ignored with the reason, or an error.
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

# Keys without effect (regular expressions) -> reason that is reported; the first match applies.
_WITHOUT_EFFECT: tuple[tuple[str, str], ...] = (
    (r"version", ""),
    (r"model\.(inputs|outputs)\b.*", "inputs and outputs are defined by the model"),
    (r"model\.name", "the run is named after the first file's model.name, or --name"),
    (r"device", "training uses a GPU if torch finds one; IRs are measured on the CPU"),
    (r"(\w+\.)?train\.(execution_mode|frequency)", "the toolkit's training has no such option"),
    (r".*\.postprocess\b.*", "the task defines how logits are post-processed"),
    (r"quantization\.calibration\.dataloader\b.*", "calibration uses --train-file with batch size 1"),
    (r".*\bdataloader\b.*", "data are read from --train-file and --validation-file"),
    (r"(\w+\.)?train\.criterion\.\w*Crossentropy\w*\b.*", "the task loss is always the task's cross entropy"),
    (r"(\w+\.)?train\.criterion\.CrossEntropyLoss\b.*", "the task loss is always the task's cross entropy"),
    (r"(\w+\.)?train\b.*", "no stage uses it: another section takes precedence, or the approach does not train"),
    (
        r"quantization\.recipes\.first_conv_or_matmul_quantization",
        "all MatMuls are quantized unless op_wise excludes them",
    ),
    (r"quantization\.recipes\.weight_correction", "weights are not corrected"),
    (r"quantization\.recipes\.\w+", "a BERT-like encoder has no such operation"),
    (r"quantization\.advance\b.*", "applies to TensorFlow only"),
    (r".*\.compute_dtype\b.*", "8-bit products are accumulated in 32 bits"),
    (r".*\.algorithm\b.*", "ranges are computed with minmax"),
    (r"tuning\.strategy\b.*", "the search is ordered by sensitivity, the most sensitive operation first"),
    (r"tuning\.tensorboard", "--track tensorboard records training curves"),
    (r"tuning\.diagnosis\b.*", "the report shows every trial and every matrix"),
    (r"tuning\.workspace\.resume", "interrupted runs are resumed automatically"),
    (r"tuning\.accuracy_criterion\.higher_is_better", "higher is better for all supported metrics"),
    (
        r"tuning\.multi_objectives\.(weight|higher_is_better)",
        "a single objective needs no weight, and lower is better for all costs",
    ),
    (
        r"tuning\.(accuracy_criterion|objective|multi_objectives|exit_policy)\b.*",
        "this file has no quantization section",
    ),
    (r"tuning\.random_seed", "another file's value or --seed takes precedence"),
    (r"tuning\.workspace\.path", "another file's value takes precedence"),
    (r"evaluation\.accuracy\.(iteration|configs)\b.*", "accuracy is always measured on all examples"),
    (r"evaluation\.performance\.(warmup|iteration)", "speed is measured in timed rounds with interleaved variants"),
    (r"evaluation\.performance\.configs\b.*", "benchmark_app sets the thread affinity"),
)


def read_inc(paths: Sequence[Path], flags: IncFlags, placeholders: bool = False) -> IncPlan:
    """Reads INC files that belong together and translates them to one recipe.

    Args:
        paths: INC's files; each section is taken from the file that has it.
        flags: Command-line flags of INC's example scripts.
        placeholders: Whether to write placeholders such as `<model>` for missing flags instead of raising an error.

    Raises:
        UserError: A file is not a valid INC file, a key is not supported, or a flag is missing.
    """
    sources = [read_source(Path(path)) for path in paths]
    plan = translate(sources, flags, placeholders)
    for source in sources:
        # A list is reported once, not item by item.
        for path in dict.fromkeys(p[:-1] if isinstance(p[-1], int) else p for p in source.left_over()):
            _account_for(plan, source, path)
    _check(plan, ", ".join(map(str, paths)))
    return plan


def _check(plan: IncPlan, name: str) -> None:
    """Validates the translated recipe; errors refer to lines of INC's files."""
    document = plan.document(name)
    try:
        Recipe.model_validate(plan.recipe)
    except ValidationError as error:
        raise together(mistakes_in(error, document, RECIPE), name) from None


def _account_for(plan: IncPlan, source: IncSource, path: KeyPath) -> None:
    """Adds a note for a key without effect; raises an error for an unsupported key."""
    key = dotted(path)
    for pattern, why in _WITHOUT_EFFECT:
        if re.fullmatch(pattern, re.sub(r"\[\d+\]", "", key), re.DOTALL):
            if why:
                plan.note(source.where(*path), key, why)
            return
    raise source.refuse(path, "not supported", "remove the key")
