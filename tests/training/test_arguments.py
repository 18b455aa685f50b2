import argparse

from harmony_diffusion.training.arguments import (
    HelpWithDefaults,
    add_data_arguments,
    add_optimizer_arguments,
    add_run_arguments,
)


def test_help_tells_what_each_option_does_and_its_default():
    parser = argparse.ArgumentParser(formatter_class=HelpWithDefaults)
    add_data_arguments(parser)
    add_optimizer_arguments(parser, ("constant", "linear"), learning_rate=1e-3)
    add_run_arguments(parser, ("no", "bf16"))
    parser.set_defaults(train_batch_size=7)
    assert not [action.dest for action in parser._actions if not action.help]
    words = " ".join(parser.format_help().split())
    assert "images in a micro-batch of one process (default: 7)" in words
    assert "of weights, order, augmentation and noise (default: 0)" in words
    assert "(default: no validation)" in words
    assert "publish the weights in half precision --push_to_hub" in words  # a switch has no default to tell
    assert "(default: None)" not in words and "(default: [])" not in words and "SUPPRESS" not in words
