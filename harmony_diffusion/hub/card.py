"""The card of a published model: front matter for the Hub, and what a reader must know."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, metadata_load

from harmony_diffusion.errors import InputError

EXAMPLES = "examples.jpg"
# Sections that every card has, and their text where nothing is known.
SECTIONS = {
    "Training": "The command and the settings of the training are not recorded.",
    "Data": "The training data and their licences are not recorded.",
    "Results": "Not measured.",
    "Limits": "Made for photographs with one pasted foreground and an exact mask. The model changes colours "
    "and tones, and adds no shadows or reflections. Look at each result: it makes some pictures worse.",
}
_IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_REPOSITORY = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
_ADDRESS = re.compile(r"""(\.from_pretrained\()(?:"[^"]*"|'[^']*')""")
_PICTURE = re.compile(r"!\[[^\]]*\]\(([\w.-]+)\)")  # one in the card's own folder
_CODE = re.compile(r"^```.*?^```$\n?", re.MULTILINE | re.DOTALL)
_USE = """from harmony_diffusion import {name}

pipe = {name}.from_pretrained("{repository}")  # pip install harmony-diffusion
pipe("composite.jpg", "mask.png"{prompt}).images[0].save("harmonized.png")"""


@dataclass(frozen=True)
class Card:
    """Facts for the card of a published model.

    Attributes:
        license: Licence identifier of the Hub, such as "apache-2.0"; "other" needs a name and a link.
        license_name: Name of a licence that has no identifier.
        license_link: Address of its text, or "LICENSE" for a file in the folder.
        repository: Id on the Hub, for the lines that load the model.
        base_model: Ids of the models it was trained from.
        datasets: Ids of the data sets it was trained on, as the Hub has them.
        tags: More tags.
        results: Scores, as `reports.hub_results.model_index_results` returns them.
        sections: Text by heading. `SECTIONS` lists those that every card has: training with its command,
            data with their licences, results with their command, and limits.
        summary: What the model is, its parts and whom they come from.
        usage: Python that loads and calls it, in place of the usual lines. The address in its
            `from_pretrained` becomes `repository`.
    """

    license: str
    license_name: str | None = None
    license_link: str | None = None
    repository: str = "owner/name"
    base_model: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    results: tuple[EvalResult, ...] = ()
    sections: Mapping[str, str] = field(default_factory=dict)
    summary: str = ""
    usage: str = ""

    def check(self) -> None:
        """Check the values that the Hub checks.

        Raises:
            InputError: One that the Hub would refuse.
        """
        if not (isinstance(self.license, str) and _IDENTIFIER.fullmatch(self.license)):
            raise InputError(
                "license", f"is {self.license!r}", "Give an identifier of the Hub, such as apache-2.0."
            )
        if self.license == "other" and not (self.license_name and self.license_link):
            raise InputError(
                "license",
                "is 'other', which needs a name and a link",
                "Give license_name and license_link (--license-name, --license-link).",
            )
        if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", self.repository):
            raise InputError("repository", f"is {self.repository!r}", "Give owner/name.")
        for name, ids in (("base_model", self.base_model), ("datasets", self.datasets)):
            for one in ids:
                if not (isinstance(one, str) and _REPOSITORY.fullmatch(one)):
                    raise InputError(name, f"holds {one!r}, which is no id of the Hub", "Give owner/name.")

    def render(self, pipeline: str, model_name: str, *, reads_text: bool, has_examples: bool) -> str:
        """Return the text of `README.md`.

        Args:
            pipeline: Class of the saved pipeline.
            model_name: Name of the model in `model-index`, and title of the card.
            reads_text: The pipeline takes a prompt.
            has_examples: The folder holds `EXAMPLES`.
        """
        self.check()
        front = self._front_matter(model_name, has_examples)
        prompt = ', "a cup on a table"' if reads_text else ""
        use = _USE.format(name=pipeline, repository=self.repository, prompt=prompt)
        if self.usage:
            use = _ADDRESS.sub(rf'\1"{self.repository}"', self.usage.strip())
        parts = [f"# {self.repository.partition('/')[2]}"]
        parts += [self.summary] if self.summary else []
        parts += ["![Results](examples.jpg)"] if has_examples else []
        parts += [f"```python\n{use}\n```"]
        sections = {**SECTIONS, **self.sections}
        parts += [f"## {heading}\n\n{text.strip()}" for heading, text in sections.items()]
        return f"---\n{front}\n---\n\n" + "\n\n".join(parts) + "\n"

    def pictures(self) -> list[str]:
        """Return the names of pictures beside the card that its sections show, but for `EXAMPLES`."""
        names = dict.fromkeys(_PICTURE.findall("\n".join(self.sections.values())))
        return [name for name in names if name != EXAMPLES]

    def _front_matter(self, model_name: str, has_examples: bool) -> str:
        widget = [{"text": "composite and result", "output": {"url": EXAMPLES}}] if has_examples else None
        data: Any = ModelCardData(
            library_name="diffusers",
            pipeline_tag="image-to-image",
            license=self.license,
            license_name=self.license_name,
            license_link=self.license_link,
            base_model=list(self.base_model) or None,
            datasets=list(self.datasets) or None,
            tags=sorted({"image-harmonization", "harmony-diffusion", *self.tags}),
            model_name=model_name if self.results else None,
            eval_results=list(self.results) or None,
            widget=widget,
        )
        return str(data.to_yaml())


def read_header(path: Path) -> dict[str, Any]:
    """Return the front matter of a card; empty without a card or without front matter."""
    if not path.is_file():
        return {}
    try:
        return metadata_load(path) or {}
    except ValueError:  # front matter that is not a mapping
        return {}


def read_card(path: Path, **changes: Any) -> Card:
    """Read the facts of an existing card, such as that of a training.

    Args:
        path: `README.md`, or a file that does not exist.
        changes: Attributes of `Card` that replace those of the file; None keeps them.

    Raises:
        InputError: The file is no card, or no licence is known.
    """
    known: dict[str, Any] = {}
    if path.is_file():
        try:
            card = ModelCard(path.read_bytes().decode("utf-8"))
        except (TypeError, ValueError, yaml.YAMLError, RecursionError) as error:
            raise InputError(path, f"is no model card: {' '.join(str(error).split())}") from None
        data: Any = card.data
        known = {name: data.get(name) for name in ("license", "license_name", "license_link")}
        for name in ("base_model", "datasets", "tags"):
            value = data.get(name) or ()
            known[name] = (value,) if isinstance(value, str) else tuple(value)
        known["results"] = tuple(data.eval_results or ())
        known["sections"] = _sections(card.text)
        known |= _introduction(card.text)
        if changes.get("license") not in (None, known["license"]):
            known |= {"license_name": None, "license_link": None}
    known |= {name: value for name, value in changes.items() if value not in (None, ())}
    if not known.get("license"):
        raise InputError("license", "is not known", "Give it (--license), as an identifier of the Hub.")
    return replace(Card(license=known["license"]), **known)


def _introduction(text: str) -> dict[str, str]:
    """Return `summary` and `usage` from the text before the first heading of the second level."""
    text = re.split(r"^## ", text, maxsplit=1, flags=re.MULTILINE)[0]
    code = next((block for block in _CODE.findall(text) if _ADDRESS.search(block)), "")
    prose = _PICTURE.sub("", _CODE.sub("", text))
    prose = re.sub(r"^# .*$", "", prose, count=1, flags=re.MULTILINE)
    return {
        "summary": re.sub(r"\n{3,}", "\n\n", prose).strip(),
        "usage": code.strip().removeprefix("```python").removesuffix("```").strip(),
    }


def _sections(text: str) -> dict[str, str]:
    """Return the text under each heading of the second level."""
    parts = re.split(r"^## +(.+?) *$", text, flags=re.MULTILINE)
    return {heading: body.strip() for heading, body in zip(parts[1::2], parts[2::2], strict=True)}
