"""Pipelines: `pipe(composite, mask, prompt)` for every method."""

import logging

# diffusers imports image processors that nothing here uses; without torchvision, transformers logs a notice
# about each of them.
logging.getLogger("transformers.utils.import_utils").addFilter(
    lambda record: "requires torchvision" not in record.getMessage()
)
