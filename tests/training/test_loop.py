"""One loop, one set of flags; old checkpoints; what stops a run."""

import argparse
import re
from pathlib import Path

import pytest
import torch

from harmony_diffusion.errors import HarmonyError, InputError
from harmony_diffusion.training.checkpoints import current_settings
from harmony_diffusion.training.launching import make_accelerator
from harmony_diffusion.training.loop import finite_values
from harmony_diffusion.training.step_clock import WARM_UP_STEPS, StepClock

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "train").glob("*.py"))
SHARED = [ROOT / "harmony_diffusion" / "training" / f"{name}.py" for name in ("arguments", "diffusion_run")]


def flags_of(paths):
    """Return what stands between the quotes of each flag that a parser is given, and whatever follows."""
    calls = re.findall(
        r'add(?:_argument)?\(\s*("-[^"]*"(?:,\s*"-[^"]*")*)', "".join(p.read_text() for p in paths)
    )
    return [re.findall(r'"([^"]*)"', call) for call in calls]


def test_exactly_one_file_goes_backward():
    folders = ("harmony_diffusion", "train", "eval")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    (path,) = [path for path in paths if "accelerator.backward" in path.read_text()]
    assert path == ROOT / "harmony_diffusion" / "training" / "loop.py"


def test_flags_are_in_snake_case_and_have_no_alias():
    names = flags_of([*SCRIPTS, *SHARED])
    assert len(names) > 100
    assert not [spellings for spellings in names if len(spellings) > 1]
    assert not [name for (name,) in names if not re.fullmatch(r"--[a-z0-9]+(_[a-z0-9]+)*", name)]


def test_every_flag_is_used_by_a_recipe_a_document_or_a_test():
    users = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "train" / "recipes").glob("*.sh")]
    users += [*(ROOT / "eval").glob("*.sh"), *(ROOT / "tests").rglob("*.py")]
    text = "".join(path.read_text() for path in users)
    flags = {name for (name,) in flags_of([*SCRIPTS, *SHARED])}
    assert not {flag for flag in flags if not re.search(rf"{flag}\b", text)}


def test_settings_of_old_checkpoints_get_their_current_names():
    old = {"seed": 3, "train_split": "train", "adam_beta1": 0.9, "adam_beta2": 0.999}
    assert current_settings(old) == {"seed": 3, "split": "train"}
    # Moments of other betas cannot be continued: the setting stays, and the checkpoint is refused.
    assert current_settings(old | {"adam_beta1": 0.5}) == {"seed": 3, "split": "train", "adam_beta1": 0.5}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_loss_that_is_not_finite_stops_the_run(value):
    losses = {"loss": torch.tensor(1.0), "fn_mse": torch.tensor(value)}
    with pytest.raises(HarmonyError, match=r"Step 7: .*--max_grad_norm"):
        finite_values(losses, 7)
    assert finite_values({"loss": torch.tensor(0.5)}, 7) == {"loss": 0.5}


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_script_without_shards_refuses_them(kind, monkeypatch):
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "true")
    with pytest.raises(InputError, match=r"train_controlnet\.py"):
        make_accelerator(argparse.Namespace(), can_shard=False)


@pytest.mark.parametrize(("steps", "measured"), [(2, 2), (50, 4)])
def test_profile_leaves_out_the_warm_up_and_is_reported_once(steps, measured):
    clock, total = StepClock(torch.device("cpu"), steps), WARM_UP_STEPS + 4
    reports = []
    for step in range(total):
        for part in ("data", "model"):
            with clock.part(part):
                pass
        clock.step += 1
        if clock.is_complete(step + 1 == total):
            reports.append(clock.report(8))
    assert len(reports) == 1
    assert re.fullmatch(rf"profile of {measured} steps: data .* %, model .* %; .* images/s", reports[0])
