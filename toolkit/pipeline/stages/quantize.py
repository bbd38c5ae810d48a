"""`quantize`: quantization of the task model with its pattern locked, tuned to meet the accuracy criterion.

Every trial has its own folder in the stage's scratch folder, so an interrupted search resumes with the next trial.
"""

import json
import shutil

from toolkit.core.artifacts import Context, StageResult
from toolkit.pipeline.stages.quantize_trials import Inputs, Trials
from toolkit.quantization.tuning import TUNING_FILE, search, select


def run(inputs: Inputs, context: Context) -> StageResult:
    """Quantizes with pattern lock and distillation (paper, section 3.3), and tunes to the accuracy criterion.

    Raises:
        UserError: `tuning.retrain_steps` is set in a distributed run.
        WorkerDone: This process is a worker and its part of the training is done.
    """
    from toolkit.models.embedding.prompts import prompts_of_tokenizer, write_prompts
    from toolkit.quantization import nncf
    from toolkit.sparsity.checks import check_locked
    from toolkit.training import distributed

    section = inputs.quantize
    distributed.require_one_process_to_retrain(section.tuning.retrain_steps)
    job = Trials(inputs, context)
    if distributed.rank():  # workers join the training of trial 0 only; rank 0 searches
        if section.train is not None:
            job.make(0, ())
        raise distributed.WorkerDone
    if len(job.task.tune):
        trials = search(job.attempt, job.ranked, section.tuning)
        costs = job.costs(trials)
        kept = select(trials, section.tuning.objective, costs)
        chosen, found = kept.number, job.summary(trials, kept, costs)
        if not kept.met:
            what = f"no trial meets the criterion on {len(job.task.tune):,} tuning examples"
            context.progress.message(f"{what}: going on with trial {chosen}, whose score is best")
    else:
        context.progress.message("no training examples set aside for tuning: quantizing as the recipe specifies")
        chosen, found = job.make(0, ()), None
    shutil.copytree(job.folder(chosen) / "model", context.folder, dirs_exist_ok=True)
    job.plain.config.save_pretrained(context.folder)
    job.tokenizer.save_pretrained(context.folder)
    if inputs.task.kind == "embedding":  # the export's examples are encoded by the tokenizer of this folder
        write_prompts(context.folder, prompts_of_tokenizer(job.tokenizer, inputs.task))
    job.mask.save(context.folder / "mask.safetensors")
    (context.folder / TUNING_FILE).write_text(json.dumps(found or {"returned": []}, indent=1))

    model = nncf.load(context.folder, job.fresh)
    training = json.loads((job.folder(chosen) / "fitted.json").read_text())
    return StageResult(
        kind="quantized",
        metrics=training["metrics"]
        | job.dev_metrics(model)
        | job.shape_metrics()
        | {"tuning": found, "overflow_fix": nncf.resolve_overflow_fix(section.quantization)},
        checks=[check_locked(job.mask, job.matrices(model))],
        data={"note": inputs.task.note},
        history=training["history"],
    )
