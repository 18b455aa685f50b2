"""The `README.md` of an exported folder: what it holds, and twenty lines that run it."""

from typing import Any

_HEAD = """# {model} as ONNX

`{model}` of Harmony Diffusion, exported with opset {opset}. Computes the same as PyTorch to {difference:.1e}
(values in [0, 1]; eight inputs, {runtime}); the background is equal to the bit. Licence: {license}.
`export.json` describes the inputs and outputs, and holds the SHA-256 sums of the files.

"""

_FILTERS = """- `network.onnx`: a thumbnail of {height} x {width} pixels in, filters out.
- `apply.onnx`: a picture of any size and the filters in, the harmonized picture out.

```python
import sys

import numpy as np
import onnxruntime
from PIL import Image

composite, mask, output = sys.argv[1:4]


def planes(image, size=None):
    image = image.resize(size, Image.Resampling.BILINEAR) if size else image
    return np.atleast_3d(np.asarray(image, np.float32) / 255).transpose(2, 0, 1)[None].copy()


picture, mask = Image.open(composite).convert("RGB"), Image.open(mask).convert("L")
network, apply = (onnxruntime.InferenceSession(name) for name in ("network.onnx", "apply.onnx"))
size = ({width}, {height})
filters = network.run(None, {{"composite": planes(picture, size), "mask": planes(mask, size)}})[0]
inputs = {{"image": planes(picture), "filters": filters, "mask": planes(mask)}}
result = apply.run(None, inputs)[0][0].transpose(1, 2, 0)
Image.fromarray((result * 255).round().astype(np.uint8)).save(output)
```

"""

_DENSE = """- `network.onnx`: a picture of {height} x {width} pixels and its mask in, the harmonized one out.

```python
import sys

import numpy as np
import onnxruntime
from PIL import Image

composite, mask, output = sys.argv[1:4]


def planes(image):
    image = image.resize(({width}, {height}), Image.Resampling.BILINEAR)
    return np.atleast_3d(np.asarray(image, np.float32) / 255).transpose(2, 0, 1)[None].copy()


picture, mask = Image.open(composite).convert("RGB"), Image.open(mask).convert("L")
inputs = {{"composite": planes(picture), "mask": planes(mask)}}
result = onnxruntime.InferenceSession("network.onnx").run(None, inputs)[0][0].transpose(1, 2, 0)
Image.fromarray((result * 255).round().astype(np.uint8)).save(output)
```

"""

_TAIL = """`harmony image COMPOSITE MASK -o OUT --model THIS_FOLDER --runtime onnx` does more: it
{window}keeps 16 bits, colour profiles and EXIF, and works in bands.
"""


def describe(fields: dict[str, Any]) -> str:
    """Return the text of the `README.md` for what `export.json` holds."""
    height, width = fields["thumbnail"]["size"]
    looks = fields["thumbnail"]["context"] is not None
    return (
        _HEAD.format(
            model=fields["model"],
            opset=fields["options"]["opset"],
            difference=fields["parity"]["largest_difference"],
            runtime=fields["parity"]["runtime"],
            license=fields["license"],
        )
        + (_FILTERS if fields["kind"] == "filters" else _DENSE).format(height=height, width=width)
        + _TAIL.format(window="looks at the window around the foreground only, " if looks else "")
    )
