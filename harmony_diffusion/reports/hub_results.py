"""Scores in the formats of the Hugging Face Hub: `model-index` of a model card, and `.eval_results/`.

Both are made from the same tables. The task name in `.eval_results` contains protocol and metric, so that the
Hub never ranks scores of different protocols against each other.
"""

import os
import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, eval_result_entries_to_yaml

from harmony_diffusion.errors import InputError
from harmony_diffusion.images.output_files import write_atomically
from harmony_diffusion.metrics.score_rows import METRICS
from harmony_diffusion.reports.table_formats import DECIMALS, TITLES, interval_text
from harmony_diffusion.reports.tables import Group, Tables

_TASK = "image-to-image"


def model_index_results(
    tables: Tables, method: str, *, dataset: str, dataset_name: str, split: str = "test"
) -> list[EvalResult]:
    """Return the scores of a method over all images and by subset, in the form of `model-index`.

    Args:
        tables: Tables from `make_tables`.
        method: Name of a method in the tables.
        dataset: Identifier of the data set, such as `iharmony4` or its Hub id.
        dataset_name: Display name of the data set.
        split: Split that was scored.

    Returns:
        One result per protocol, subset and metric. The metric name contains the protocol. The value has the
        decimals of the printed tables.

    Raises:
        InputError: The tables do not have the method.
    """
    results = []
    for group in _groups(tables, method, ("all", "subset")):
        part = "" if group.kind == "all" else f" {group.name}"
        protocol = {"protocol": group.protocol} if group.protocol else {}
        for metric in METRICS:
            if metric in group.scores:
                results.append(
                    EvalResult(
                        task_type=_TASK,
                        task_name="Image Harmonization",
                        dataset_type=dataset,
                        dataset_name=dataset_name + part,
                        dataset_config=group.name,
                        dataset_split=split,
                        metric_type=metric,
                        metric_name=_metric_name(metric, group.protocol),
                        metric_args={**protocol, "images": group.scores[metric].count},
                        metric_value=round(group.scores[metric].mean, DECIMALS[metric]),
                    )
                )
    return results


def merge_into_card(card: str | os.PathLike[str], model_name: str, results: list[EvalResult]) -> None:
    """Merge results into the YAML front matter of a model card. All other content is kept.

    A result of the same task, data set, split and metric is replaced; other results are kept. Merging the
    same results again changes nothing.

    Args:
        card: `README.md` of the model.
        model_name: Name of the model in the index. A name already in the card is kept.
        results: Results from `model_index_results`.

    Raises:
        InputError: The card cannot be read, or its front matter is not valid YAML of a model card.
    """
    path = Path(card)
    try:
        # Read bytes, so that line endings are kept.
        content = path.read_bytes().decode("utf-8")
        loaded = ModelCard(content)
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(path, f"is not a model card with YAML front matter: {reason}") from None
    data: Any = loaded.data  # the class is ModelCardData, despite the annotation
    kept = {_key(result): result for result in data.eval_results or []}
    data.eval_results = list((kept | {_key(result): result for result in results}).values())
    data.model_name = data.model_name or model_name
    write_atomically(path, str(loaded).encode("utf-8"), overwrite=True)


def write_eval_results(
    folder: str | os.PathLike[str],
    tables: Tables,
    method: str,
    *,
    dataset: str,
    revision: str | None = None,
    date: str | None = None,
) -> list[Path]:
    """Write `FOLDER/.eval_results/NAME_PROTOCOL.yaml`, one file per protocol, with scores over all images.

    Args:
        folder: Folder of the model repository.
        tables: Tables from `make_tables`.
        method: Name of a method in the tables.
        dataset: Hub id of the benchmark data set, `owner/name`.
        revision: Commit of the data set that was used.
        date: Date of the evaluation, for example 2026-01-31.

    Returns:
        The files written.

    Raises:
        InputError: The tables do not have the method, or `dataset` is not a Hub id.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", dataset):
        raise InputError("dataset", f"is {dataset!r}", "Give the Hub id of the data set, owner/name.")
    target = Path(folder) / ".eval_results"
    written = []
    for group in _groups(tables, method, ("all",)):
        entries = [
            EvalResultEntry(
                dataset_id=dataset,
                task_id=f"{group.protocol}_{metric}" if group.protocol else metric,
                value=round(group.scores[metric].mean, DECIMALS[metric]),
                dataset_revision=revision,
                date=date,
                notes=_notes(group, metric),
            )
            for metric in METRICS
            if metric in group.scores
        ]
        target.mkdir(parents=True, exist_ok=True)
        name = "_".join(part for part in (dataset.split("/")[1], group.protocol) if part)
        path = target / f"{re.sub(r'[^A-Za-z0-9_.-]', '-', name)}.yaml"
        text = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)
        write_atomically(path, text.encode("utf-8"), overwrite=True)
        written.append(path)
    return written


def _groups(tables: Tables, method: str, kinds: tuple[str, ...]) -> list[Group]:
    groups = [group for group in tables.groups if group.method == method and group.kind in kinds]
    if not groups:
        raise InputError(method, "is not among the methods of the tables")
    return groups


def _metric_name(metric: str, protocol: str) -> str:
    return f"{TITLES[metric]} ({protocol})" if protocol else TITLES[metric]


def _notes(group: Group, metric: str) -> str:
    score = group.scores[metric]
    parts = [f"protocol {group.protocol}"] if group.protocol else []
    parts.append(f"mean over {score.count} images")
    if score.interval:
        parts.append(f"95 % interval {interval_text(score.interval, metric)}")
    return ", ".join(parts)


def _key(result: EvalResult) -> tuple[object, ...]:
    """Return the identity of a result: results with the same key replace each other."""
    protocol = (result.metric_args or {}).get("protocol")
    place = (result.dataset_type, result.dataset_name, result.dataset_config, result.dataset_split)
    return (result.task_type, *place, protocol, result.metric_type, result.metric_name)
