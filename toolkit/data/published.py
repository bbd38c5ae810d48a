"""Row counts of public data sets, so that recipes can be planned offline."""

from toolkit.data.hub import hub_split
from toolkit.recipe.references import is_hub

# `<dataset>:<config>:<split>` -> rows.
ROWS = {
    "nyu-mll/glue:sst2:train": 67_349,
    "nyu-mll/glue:sst2:validation": 872,
    "nyu-mll/glue:mnli:train": 392_702,
    "nyu-mll/glue:mnli:validation_matched": 9_815,
    "nyu-mll/glue:mnli:validation_mismatched": 9_832,
    "nyu-mll/glue:qqp:train": 363_846,
    "nyu-mll/glue:qqp:validation": 40_430,
    "nyu-mll/glue:qnli:train": 104_743,
    "nyu-mll/glue:qnli:validation": 5_463,
    "nyu-mll/glue:mrpc:train": 3_668,
    "nyu-mll/glue:mrpc:validation": 408,
    "nyu-mll/glue:rte:train": 2_490,
    "nyu-mll/glue:rte:validation": 277,
    "nyu-mll/glue:wnli:train": 635,
    "nyu-mll/glue:wnli:validation": 71,
    "nyu-mll/glue:cola:train": 8_551,
    "nyu-mll/glue:cola:validation": 1_043,
    "nyu-mll/glue:stsb:train": 5_749,
    "nyu-mll/glue:stsb:validation": 1_500,
    "eriktks/conll2003::train": 14_041,
    "eriktks/conll2003::validation": 3_250,
    "manu/wnut_17::train": 3_394,
    "manu/wnut_17::validation": 1_009,
    "sentence-transformers/msmarco-bm25:triplet:train": 502_931,
    "google-research-datasets/go_emotions:simplified:train": 43_410,
    "google-research-datasets/go_emotions:simplified:validation": 5_426,
    "rajpurkar/squad::train": 87_599,
    "rajpurkar/squad::validation": 10_570,
}


def published_rows(spec: str) -> int | None:
    """Returns the number of rows of a public split, whatever its revision; None: unknown, or not on the hub."""
    if not is_hub(spec):
        return None
    split = hub_split(spec)
    return ROWS.get(f"{split.dataset}:{split.config}:{split.split}")
