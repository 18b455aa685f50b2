"""Checks of a folder before it is published: no pickles, no paths and names of the machine that made it."""

import getpass
import re
from pathlib import Path

from harmony_diffusion.errors import InputError
from harmony_diffusion.pipelines.saved_folders import read_safetensors_header

_PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth", ".npy", ".npz")
_TEXTS = (".md", ".json", ".yaml", ".yml", ".txt", ".py", "")
# Words of a tokenizer are no facts on a machine.
_VOCABULARIES = ("merges.txt", "tokenizer.json", "vocab.json")
_FOLDERS = "home|Users|root|mnt|media|tmp|var|opt|srv|data|scratch|work|workspace|private|content"
_ABSOLUTE = re.compile(rf"(?<![\w.:/~-])/(?:{_FOLDERS})/[\w.-]+|(?<!\w)[A-Za-z]:\\[\w.\\-]+")
_SHARED_NAMES = {"admin", "root", "runner", "ubuntu", "user", "users"}
_SHORTEST_NAME = 4


def check_for_publication(folder: Path) -> None:
    """Check every file of a folder.

    Raises:
        InputError: A file of weights that is no safetensors file, or a text with an absolute path or with the
            name of the user.
    """
    user = _user_name()
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        name = path.relative_to(folder).as_posix()
        if path.suffix.lower() in _PICKLES:
            raise InputError(name, "may hold pickled objects", "Save the weights as safetensors.")
        if path.suffix.lower() not in _TEXTS or path.name in _VOCABULARIES:
            continue
        try:
            text = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            raise InputError(name, "is no text in UTF-8", "Leave it out.") from None
        if found := _ABSOLUTE.search(text):
            raise InputError(name, f"holds the absolute path {found[0]!r}", "Write it without the folders.")
        if user and re.search(rf"(?<!\w){re.escape(user)}(?!\w)", text):
            raise InputError(name, f"holds the user name {user!r}", "Remove it.")


def stored_in_half_precision(folder: Path) -> bool:
    """Return True if a folder holds weights, all of them stored as float16."""
    kinds = {
        entry["dtype"]
        for path in folder.rglob("*.safetensors")
        for entry in read_safetensors_header(path).values()
        if entry["dtype"].startswith(("F", "BF"))
    }
    return kinds == {"F16"}


def _user_name() -> str:
    """Return the name of the user if it is one that identifies somebody, else nothing."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError, ImportError):  # no entry for this user
        return ""
    return "" if len(name) < _SHORTEST_NAME or name.lower() in _SHARED_NAMES else name
