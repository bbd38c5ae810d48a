"""Upload of an exported IR folder to a repository on the Hugging Face hub."""

import glob
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import Path

from toolkit.core.errors import UserError
from toolkit.core.files import CARD
from toolkit.ir.bundle import regular_files
from toolkit.ir.runtime import MODEL

_MESSAGE = "Upload the IR with its card and its manifest"
_TOKEN = "HF_TOKEN=<a token with write access>, from the settings of your account, or: hf auth login"
_REFUSED = {401: "the hub does not accept the token", 403: "the token has no right to write here"}


@dataclass(frozen=True)
class Upload:
    """An upload that was made.

    Attributes:
        repo: Id of the repository, with its owner.
        url: Its address.
        commit: Hash of the commit.
        private: Whether the repository is private.
    """

    repo: str
    url: str
    commit: str
    private: bool


def files_to_upload(folder: Path) -> dict[str, int]:
    """Returns name -> bytes of the files of an IR folder; hidden ones are left out.

    Raises:
        UserError: The folder contains no complete IR, or links, special files or other subfolders.
    """
    for name in (MODEL, Path(MODEL).with_suffix(".bin").name):
        if not (folder / name).is_file():
            what = "no such folder" if not folder.is_dir() else f"no {name} in this folder"
            raise UserError(what, where=str(folder), instead="<run>/tasks/<task>/export/<variant>")
    names = {path: path.relative_to(folder) for path in regular_files(folder)}
    return {
        name.as_posix(): path.stat().st_size
        for path, name in names.items()
        if not any(part.startswith(".") for part in name.parts)
    }


def upload(folder: Path, repo: str, files: dict[str, int], *, public: bool) -> Upload:
    """Creates a repository if there is none, and uploads files of a folder in one commit.

    Args:
        folder: The IR folder.
        repo: Id of the repository; without an owner, the token's.
        files: The files, as `files_to_upload` returns them.
        public: Whether everybody may see the repository; one that exists must be of that kind.

    Raises:
        UserError: Uploads are switched off (HF_HUB_OFFLINE); there is no token or it has no right; the hub cannot be
            reached, or refuses the name or the card; or the repository exists and is public, which was not asked for.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.constants import ENDPOINT, is_offline_mode

    if is_offline_mode():
        what = "HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set, so nothing is uploaded"
        raise UserError(what, where=repo, instead="HF_HUB_OFFLINE=0 before the same command")
    if get_token() is None:
        raise UserError(f"no token for {ENDPOINT}", where=repo, instead=_TOKEN)
    api = HfApi(library_name="pruneofa")
    with _refusals(repo, ENDPOINT):
        if CARD in files:
            _validate_card((folder / CARD).read_text(encoding="utf-8"), ENDPOINT)
        made = api.create_repo(repo, private=not public, exist_ok=True)
        private = bool(api.repo_info(made.repo_id).private)
    if private == public:
        found, wanted = ("public", "--public") if public is False else ("private", "no --public")
        what = f"this repository exists and is {found}; nothing was uploaded"
        raise UserError(what, where=made.repo_id, instead=f"{wanted}, or another name")
    with _refusals(made.repo_id, ENDPOINT):
        # Patterns, not the complete folder: what is uploaded is what was shown.
        commit = api.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            allow_patterns=[glob.escape(name) for name in files],
            commit_message=_MESSAGE,
        )
    return Upload(made.repo_id, str(made), commit.oid, private)


def _validate_card(card: str, endpoint: str) -> None:
    """Has the hub check a card's metadata before a repository is created, which would stay empty otherwise.

    Raises:
        ValueError: The hub does not accept the card.
    """
    from huggingface_hub import get_session
    from huggingface_hub.errors import BadRequestError
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    # Not ModelCard.validate: it calls huggingface.co whatever HF_ENDPOINT is.
    body = {"content": card, "repoType": "model"}
    response = get_session().post(f"{endpoint}/api/validate-yaml", json=body, headers=build_hf_headers())
    try:
        hf_raise_for_status(response)
    except BadRequestError as error:
        found = [str(each.get("message")) for each in response.json().get("errors", [])]
        raise ValueError("; ".join(found) or _line(error)) from None


@contextmanager
def _refusals(repo: str, endpoint: str) -> Iterator[None]:
    """Turns the errors of the hub and of the network into UserErrors."""
    from httpx import HTTPError
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        yield
    except HFValidationError as error:
        what = f"not a name of a repository ({_line(error)})"
        raise UserError(what, where=repo, instead="<owner>/<name>, of letters, digits, - _ and .") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        reason = error.server_message or _line(error)
        what = f"{_REFUSED.get(status, f'{endpoint} refuses the upload')} ({status}: {reason})"
        instead = _TOKEN if status in _REFUSED else "another name, or the same command later"
        raise UserError(what, where=repo, instead=instead) from None
    except (HTTPError, OSError, JSONDecodeError) as error:
        what = f"{endpoint} cannot be reached, or does not reply as the hub does ({_line(error)})"
        raise UserError(
            what, where=repo, instead="the same command with network access; HF_ENDPOINT, HTTPS_PROXY"
        ) from None
    except ValueError as error:  # of the card's metadata, which the hub reads first, or a card that is not UTF-8
        reason = " ".join(str(error).split())
        instead = f"mend the lines between the first two --- of {CARD}, or delete it and run: pruneofa report <run>"
        raise UserError(f"the hub does not accept the card ({reason})", where=CARD, instead=instead) from None


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
