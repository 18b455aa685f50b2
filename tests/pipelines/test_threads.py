"""Calls from several threads give what single calls give."""

import threading

import numpy as np
import pytest
import torch
from tiny_diffusion import call, make_pipe, object_mask, picture, seeded

from harmony_diffusion.models import create_model
from harmony_diffusion.pipelines.harmonization import HarmonizationPipeline


def in_threads(functions):
    """Call functions at the same time; return their results, or the errors that they raised."""
    results, start = [None] * len(functions), threading.Barrier(len(functions))

    def run(index):
        start.wait()
        try:
            results[index] = functions[index]()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(functions))]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    return results


CALLS = (
    {"generator": 0, "num_inference_steps": 6, "guidance_scale": 1.0},
    {"generator": 1, "num_inference_steps": 3, "guidance_scale": 7.5, "prompt": "a red car"},
    {"generator": 2, "num_inference_steps": 5, "control_cfg": "cond", "high_window": (0.0, 0.5)},
    {"generator": 3, "num_inference_steps": 4, "init": "composite", "strength": 0.5},
)


@pytest.mark.parametrize("offload", [False, True])
def test_diffusion_calls_in_threads_equal_single_calls(tiny_sd2_components, offload):
    pipe = make_pipe(tiny_sd2_components)
    if offload:
        pipe.enable_model_cpu_offload(device="cpu")

    def one(options):
        return call(pipe, **{**options, "generator": seeded(options["generator"])}).images[0]

    expected = [one(options) for options in CALLS]
    for _ in range(2):
        for got, want in zip(in_threads([lambda o=o: one(o) for o in CALLS]), expected, strict=True):
            assert isinstance(got, np.ndarray), got
            assert np.array_equal(got, want)


def test_a_callback_stops_its_own_call_and_the_pipeline_stops_all(tiny_sd2_components):
    pipe, steps = make_pipe(tiny_sd2_components), {}

    def callback(name, stop):
        def after_step(called, step, timestep, tensors):
            steps[name] = step
            if stop == "own" and step == 1:
                called._interrupt = True
            if stop == "all" and step == 1:
                pipe._interrupt = True
            return {}

        return after_step

    def one(name, stop):
        return call(pipe, num_inference_steps=8, callback_on_step_end=callback(name, stop))

    in_threads([lambda: one("stopped", "own"), lambda: one("whole", None)])
    assert steps == {"stopped": 1, "whole": 7}
    one("by the pipeline", "all")
    one("after it", None)
    assert steps["by the pipeline"] == 1 and steps["after it"] == 7


def test_a_call_leaves_the_scheduler_of_the_pipeline_alone(tiny_sd2_components):
    pipe = make_pipe(tiny_sd2_components)
    before = pipe.scheduler.num_inference_steps
    call(pipe, num_inference_steps=3)
    assert pipe.scheduler.num_inference_steps == before
    assert pipe.num_timesteps == 3 and pipe.guidance_scale == 7.5


@pytest.mark.parametrize("name", ["reinhard", "harmonizer"])
def test_discriminative_calls_in_threads_equal_single_calls(name):
    torch.manual_seed(0)
    pipe = HarmonizationPipeline(create_model(name))
    pipe.set_progress_bar_config(disable=True)

    def one(seed):
        return pipe(picture((80, 64), seed), object_mask((80, 64)), output_type="array").images[0]

    expected = [one(seed) for seed in range(4)]
    for got, want in zip(in_threads([lambda s=s: one(s) for s in range(4)]), expected, strict=True):
        assert np.array_equal(got, want)
