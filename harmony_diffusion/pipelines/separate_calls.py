"""Keep calls of one pipeline from several threads apart."""

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from harmony_diffusion.highres.offload import is_offloaded

# Hooks move the weights of a network around each of its calls, and LoRA scales change its layers.
_ONE_AT_A_TIME = threading.RLock()
_COUNTING = threading.Lock()
# Fast tokenizers set padding and truncation on themselves, and refuse to do so in two threads at once.
ENCODING_TEXT = threading.RLock()

# State of a call that diffusers keeps on the pipeline, and that callers read there after the call.
_STATE = ("_guidance_scale", "_num_timesteps", "_clip_skip", "_cross_attention_kwargs")


@contextmanager
def in_turn(pipe: Any) -> Iterator[None]:
    """Let calls whose networks are offloaded, cast or adapted run one after the other; let others pass."""
    if any(changes_while_running(part) for part in pipe.components.values()):
        with _ONE_AT_A_TIME:
            yield
    else:
        yield


def changes_while_running(part: Any) -> bool:
    """Return True for networks that a call changes: offloaded or cast by hooks, or with LoRA layers."""
    return isinstance(part, torch.nn.Module) and (
        is_offloaded(part) or getattr(part, "peft_config", None) is not None
    )


@contextmanager
def separate_call(pipe: Any) -> Iterator[Any]:
    """Yield a copy of the pipeline for one call: the same networks, a scheduler and a state of its own.

    `pipe._interrupt = True`, set from anywhere, stops all calls that run then.
    """
    with in_turn(pipe):
        with _COUNTING:
            if not pipe._running_calls:
                pipe._interrupt = False
            pipe._running_calls += 1
        call = copy.copy(pipe)
        vars(call).update(scheduler=copy.deepcopy(pipe.scheduler), _interrupt=False, _called=pipe)
        try:
            yield call
        finally:
            vars(pipe).update({name: vars(call)[name] for name in _STATE})
            with _COUNTING:
                pipe._running_calls -= 1
            pipe.maybe_free_model_hooks()
