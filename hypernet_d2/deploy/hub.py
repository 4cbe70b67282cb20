"""Exported models on the Hugging Face Hub, or in folders of the same layout."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

__all__ = ["MODEL_SUFFIXES", "find_model", "push_to_hub", "write_folder"]

MODEL_SUFFIXES = (".onnx", ".pt2")
# Copied from the output folder of a training, where they are there.
RUN_FILES = (
    "config.yaml", "results.json", "score_thresholds.json", "report.html", "report.md", "report",
)  # fmt: skip
_EXTRA = 'the Hugging Face Hub needs huggingface_hub: pip install "hypernet-d2[hub]"'


def find_model(
    source: str | os.PathLike, file: str | None = None, revision: str | None = None
) -> Path:
    """The exported model in a folder, or in a repository of the Hub, from where it is downloaded.

    Args:
        source: a folder, or the name of a repository, ``OWNER/NAME``.
        file: which one, where there are several.
        revision: branch, tag or commit of the repository; default: its main branch.

    Raises:
        FileNotFoundError: the folder or repository has no such model.
        ValueError: several models and no ``file``, or a name that no repository can have.
        ImportError: huggingface_hub is not installed.
    """
    folder = Path(source)
    if not folder.is_dir():
        try:
            from huggingface_hub import snapshot_download
        except ImportError as error:
            raise ImportError(_EXTRA) from error
        if os.fspath(source).count("/") != 1 or folder.is_absolute():
            raise FileNotFoundError(f"{source}: neither a folder nor OWNER/NAME of a repository")
        patterns = [file] if file else [f"*{suffix}" for suffix in MODEL_SUFFIXES]
        folder = Path(
            snapshot_download(os.fspath(source), revision=revision, allow_patterns=patterns)
        )
    if file is not None:
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{source}: has no file {file}")
        return folder / file
    found = sorted(path for path in folder.iterdir() if path.suffix in MODEL_SUFFIXES)
    if not found:
        raise FileNotFoundError(f"{source}: has no exported model ({', '.join(MODEL_SUFFIXES)})")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"{source}: has several models, {names}: name one of them as file")
    return found[0]


def write_folder(
    folder: Path, models: Iterable[Path], card: str, run: Path | None = None
) -> list[Path]:
    """Write what a repository of the Hub holds into a new or empty folder.

    Args:
        folder: gets the models, ``README.md``, and the files of ``run`` that `RUN_FILES` names.
        models: files of exported models, of different names.
        card: the model card, see `hypernet_d2.deploy.model_card.model_card`.
        run: output folder of the training.

    Returns:
        The paths of what was written.

    Raises:
        ValueError: the folder is not empty, or two models have one name.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder}: expected a new or empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    for model in models:
        if (folder / model.name).exists():
            raise ValueError(f"{model}: two models are named {model.name}")
        shutil.copyfile(model, folder / model.name)
    for name in RUN_FILES if run else ():
        if (run / name).is_dir():
            shutil.copytree(run / name, folder / name)
        elif (run / name).is_file():
            shutil.copyfile(run / name, folder / name)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return sorted(folder.iterdir())


def push_to_hub(
    folder: Path, repo_id: str, *, private: bool = False, message: str = "Upload", api=None
) -> str:
    """Upload a folder to a repository of the Hub, which is created if it does not exist.

    Args:
        folder: see `write_folder`.
        repo_id: ``OWNER/NAME``.
        private: of a repository that is created.
        message: of the commit.
        api: a ``huggingface_hub.HfApi``; by default one with the user's login.

    Returns:
        The URL of the commit.

    Raises:
        ImportError: huggingface_hub is not installed.
        OSError: of huggingface_hub, where the Hub refuses or cannot be reached.
    """
    if api is None:
        try:
            from huggingface_hub import HfApi
        except ImportError as error:
            raise ImportError(_EXTRA) from error
        api = HfApi()
    api.create_repo(repo_id, private=private, exist_ok=True)
    return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message))
