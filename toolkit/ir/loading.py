"""Exported IR folders as models of optimum-intel and sentence-transformers, the sparse kernels loaded with them."""

import functools
from pathlib import Path
from typing import Any

from toolkit.core.errors import UserError
from toolkit.core.files import read_json
from toolkit.ir.runtime import MODEL, needed_extension

# End of the name of a torch class in `config.json` -> the class of optimum-intel that opens its IR.
_CLASSES = {
    "ForSequenceClassification": "OVModelForSequenceClassification",
    "ForQuestionAnswering": "OVModelForQuestionAnswering",
    "ForTokenClassification": "OVModelForTokenClassification",
}
# Files of a sentence-transformers folder, which the IRs of embedding models and rerankers are.
_MODULES, _LIBRARY = "modules.json", "config_sentence_transformers.json"
_LIKE_MEASURED = {"INFERENCE_PRECISION_HINT": "f32"}  # else bf16 on some CPUs, and other scores


def load_ir(folder: Path) -> Any:
    """Opens an exported IR folder; an IR on the sparse engine gets its kernels.

    Returns:
        A `SentenceTransformer` for an embedding model, else the optimum-intel model of the task's class.

    Raises:
        UserError: The folder contains no IR, or one of another kind; it needs kernels that are not built; or a library
            is not installed.
    """
    if not (folder / MODEL).is_file():
        what = "no such folder" if not folder.is_dir() else f"no {MODEL} in this folder"
        raise UserError(what, where=str(folder), instead="<run>/tasks/<task>/export/<variant>")
    if extension := needed_extension(folder):
        _add_to_optimum(extension)
    if _is_embedding_model(folder):
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            what, instead = "sentence-transformers is not installed", "pip install sentence-transformers"
            raise UserError(what, where=str(folder), instead=instead) from None
        options = {"ov_config": _LIKE_MEASURED}
        return SentenceTransformer(str(folder), backend="openvino", device="cpu", model_kwargs=options)
    config = read_json(folder / "config.json")
    names = config.get("architectures") if isinstance(config, dict) else None
    name = next((ov for end, ov in _CLASSES.items() for n in names or () if str(n).endswith(end)), None)
    if name is None:
        what = f"no class for an IR of {names[0] if names else 'an unknown model'}"
        raise UserError(what, where=str(folder / "config.json"), instead=f"architectures: […{' or …'.join(_CLASSES)}]")
    import optimum.intel

    return getattr(optimum.intel, name).from_pretrained(folder, ov_config=_LIKE_MEASURED)


def _is_embedding_model(folder: Path) -> bool:
    """Returns whether a folder is a `SentenceTransformer`; a reranker's is a `CrossEncoder`, and a classifier, too."""
    if not (folder / _MODULES).is_file():
        return False
    config = read_json(folder / _LIBRARY) if (folder / _LIBRARY).is_file() else {}
    return not isinstance(config, dict) or config.get("model_type", "SentenceTransformer") == "SentenceTransformer"


@functools.cache
def _add_to_optimum(extension: Path) -> None:
    """Loads the sparse kernels into the one OpenVINO core that optimum-intel has in a process."""
    from optimum.intel.openvino import modeling_base

    modeling_base.core.add_extension(str(extension))
