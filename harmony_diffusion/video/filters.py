"""The filters of one frame: predicted from a small copy, kept as numbers, applied to windows of the frame.

The numbers of a frame can be averaged over time. They are maps over a window that follows the object, or
arguments of white-box filters with their frame statistics, or the colour map of a dense network. Maps of more
than 32x32 cells are cut to the window around the object and kept at 32x32.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harmony_diffusion.boxes import Box, bounding_box
from harmony_diffusion.highres.color_map import apply_color_map, fit_color_map
from harmony_diffusion.highres.harmonize import harmonize_thumbnail, window_around
from harmony_diffusion.highres.offload import execution_device, is_offloaded, run_with_hooks
from harmony_diffusion.highres.thumbnail import Thumbnail, make_thumbnail, thumbnail_size
from harmony_diffusion.images.picture import Picture
from harmony_diffusion.models.contract import HarmonyModel
from harmony_diffusion.video.frame_colors import AnyFrame, Frame

LEAST_PIXELS = 64  # of foreground, for a frame to be looked at
_MAP_SIDE = 32
_BAND_PIXELS = 1 << 17  # rendered at a time
_MAP_CONTEXT = 0.2  # of `window_around`, for maps that are cut
SMALL_SIDE = 32  # of the copy of the foreground in which flicker is measured


@dataclass(frozen=True)
class FrameView:
    """What a model is shown of one frame.

    Attributes:
        thumbnail: Its input.
        window: Rows and columns of the frame that were seen.
        picture: These, for models that measure the frame at its own size.
        mask: Mask of the whole frame, `(H, W)`.
    """

    thumbnail: Thumbnail
    window: Box
    picture: Picture | None
    mask: np.ndarray


class FilterModel:
    """A model of the registry, seen as something that predicts numbers for a frame and applies them.

    Args:
        model: Any registry model.
        restricted: A reference mask or alpha says where the model may look: it sees the whole frame.
    """

    def __init__(self, model: HarmonyModel, *, restricted: bool = False) -> None:
        self.model, self.restricted = model, restricted
        self.dense = not model.predicts_filters
        self.statistics = 0
        if self.dense:
            self.shape: tuple[int, ...] = (12, _MAP_SIDE, _MAP_SIDE)
            self.cut = True
            return
        filters = self._probe()
        self.shape = tuple(filters.shape[1:])
        self.cut = filters.ndim == 4 and max(self.shape[1:]) > _MAP_SIDE
        if self.cut:
            self.shape = (self.shape[0], _MAP_SIDE, _MAP_SIDE)
        if model.needs_frame_statistics:
            self.statistics = self._measure_frame(torch.zeros(1, 3, 8, 8), filters).shape[1]

    @torch.no_grad()
    def _probe(self) -> Tensor:
        """Predict once, to know how many numbers there are."""
        side = int(self.model.working_size)
        image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
        mask = torch.zeros(1, 1, side, side)
        mask[..., side // 4 : side // 2, side // 4 : side // 2] = 1
        return self._predict_filters(*(t.to(self.device, self.model.dtype) for t in (image, mask)))

    @property
    def device(self) -> torch.device:
        """Device that the model computes on."""
        return execution_device(self.model)

    @property
    def one_at_a_time(self) -> bool:
        """Whether the model must not be called from several threads: its weights move around each call."""
        return is_offloaded(self.model)

    def _predict_filters(self, *arguments: Tensor) -> Tensor:
        return run_with_hooks(self.model, self.model.predict_filters, *arguments).float()

    def _apply_filters(self, *arguments: Tensor) -> Tensor:
        return run_with_hooks(self.model, self.model.apply_filters, *arguments)

    def _measure_frame(self, frame: Tensor, filters: Tensor) -> Tensor:
        return run_with_hooks(self.model, self.model.frame_statistics, frame.to(filters.device), filters)

    @property
    def count(self) -> int:
        """How many numbers are kept of a frame: filters, then frame statistics."""
        return int(np.prod(self.shape)) + self.statistics

    def view(self, frame: AnyFrame, mask: np.ndarray, reference: np.ndarray | None = None) -> FrameView:
        """Make the thumbnail of a frame.

        Args:
            frame: The composite.
            mask: 1 on the foreground, `(H, W)` float32, 0 where the frame is hidden.
            reference: Weight of the background pixels, `(H, W)`; only for a `restricted` model.
        """
        window = self._seen(frame, mask)
        quick = self._quick_thumbnail(frame, mask, window) if reference is None else None
        if quick is not None:
            return FrameView(quick, window, None, mask)
        picture = Picture(frame.rgb(window))
        allowed = reference[window] if reference is not None else None
        thumbnail = make_thumbnail(self.model, picture, np.ascontiguousarray(mask[window]), allowed)
        return FrameView(thumbnail, window, picture if self.statistics else None, mask)

    @torch.no_grad()
    def predict(self, views: list[FrameView]) -> np.ndarray:
        """Predict what is kept of some frames, `(n, count)` float32; frames of one size in one batch."""
        if self.dense:
            return np.stack([self._cut_map(self._color_map(view), view) for view in views])
        predicted: list[Tensor] = []
        same = len({v.thumbnail.composite.shape for v in views}) == 1
        if same and len(views) > 1:
            arguments = zip(*(view.thumbnail.arguments(self.model) for view in views), strict=True)
            predicted = list(self._predict_filters(*(torch.cat(t) for t in arguments)).split(1))
        else:
            predicted = [self._predict_filters(*view.thumbnail.arguments(self.model)) for view in views]
        rows = []
        for view, filters in zip(views, predicted, strict=True):
            if self.cut:
                rows.append(self._cut_map(filters, view))
                continue
            numbers = filters.flatten().cpu()
            if self.statistics:
                numbers = torch.cat((numbers, self._measure(view, filters).flatten().cpu()))
            rows.append(numbers.numpy())
        return np.stack(rows)

    def _measure(self, view: FrameView, filters: Tensor) -> Tensor:
        if self.restricted or view.picture is None:
            frame = view.thumbnail.composite.float()
        else:
            frame = view.picture.to_tensor()[None]
        return self._measure_frame(frame, filters)

    def _color_map(self, view: FrameView) -> Tensor:
        harmonized = harmonize_thumbnail(self.model, view.thumbnail)
        return fit_color_map(view.thumbnail.composite.float(), harmonized, view.thumbnail.mask.float())

    def _cut_map(self, maps: Tensor, view: FrameView) -> np.ndarray:
        window = window_around(view.mask, _MAP_CONTEXT)
        part = sample_maps(maps, view.window, window, (_MAP_SIDE, _MAP_SIDE))
        return part.flatten().cpu().numpy()

    def _seen(self, frame: AnyFrame, mask: np.ndarray) -> Box:
        """Return the window that the model is shown."""
        if self.model.context is None or self.restricted:
            return slice(0, mask.shape[0]), slice(0, mask.shape[1])
        return frame.aligned(window_around(mask, self.model.context))

    def _quick_thumbnail(self, frame: AnyFrame, mask: np.ndarray, window: Box) -> Thumbnail | None:
        """Make the input of a model that sees averages from the planes of a frame that is much larger."""
        height, width = window[0].stop - window[0].start, window[1].stop - window[1].start
        size = thumbnail_size(self.model, (height, width))
        shrinks = height >= 1.5 * size[0] and width >= 1.5 * size[1]
        antialiased = self.model.keeps_shape or self.model.takes_reference
        if not isinstance(frame, Frame) or self.statistics or not shrinks or not antialiased:
            return None
        share = torch.from_numpy(np.ascontiguousarray(mask[window]))[None, None]
        small = F.interpolate(share, size, mode="bilinear", align_corners=False, antialias=True).clamp_(0, 1)
        device, dtype = self.device, self.model.dtype
        return Thumbnail(frame.small_rgb(window, size).to(device, dtype), small.to(device, dtype), None)

    def window(self, frame: AnyFrame, mask: np.ndarray) -> Box:
        """Return the window over which the maps of a frame lie."""
        return window_around(mask, _MAP_CONTEXT) if self.cut else self._seen(frame, mask)

    @torch.no_grad()
    def changes(
        self, frame: AnyFrame, mask: np.ndarray, numbers: np.ndarray, strength: float = 1.0
    ) -> Iterator[tuple[Box, np.ndarray]]:
        """Compute what is added to a frame, in windows that cover the foreground, for `Frame.changed`.

        Args:
            frame: The composite.
            mask: 1 on the foreground, `(H, W)` float32.
            numbers: What `predict` returned for it, or a mean of such over time, `(count,)`.
            strength: 0 changes nothing, 1 gives the result of the model.

        Yields:
            Windows and changes `(h, w, 3)`, 0 where the mask is 0.
        """
        window = self.window(frame, mask)
        for box in _bands(frame, mask):
            share = np.ascontiguousarray(mask[box])
            change = self.change_of(frame.rgb(box), share, numbers, window, box)
            if strength != 1:
                change *= np.float32(strength)
            yield box, change

    @torch.no_grad()
    def change_of(
        self, pixels: np.ndarray, share: np.ndarray, numbers: np.ndarray, window: Box, box: Box
    ) -> np.ndarray:
        """Compute the change of the pixels in `box` of a frame. Its maps cover `window`.

        Args:
            pixels: `(h, w, 3)` in [0, 1]; they may be a small copy of the box.
            share: Their mask, `(h, w)`.
            numbers: See `changes`.
            window: Rows and columns.
            box: Rows and columns.
        """
        device = self.device
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous().to(device)
        weights = torch.from_numpy(share)[None, None].to(device)
        size = int(np.prod(self.shape))
        values = torch.from_numpy(np.ascontiguousarray(numbers, np.float32)).to(device)
        filters = values[:size].view(1, *self.shape)
        if len(self.shape) == 3:
            maps = sample_maps(filters, window, box, (pixels.shape[0], pixels.shape[1]))
            apply = apply_color_map if self.dense else self._apply_filters
            changed = apply(image, maps, weights)
        elif self.statistics:
            changed = self._apply_filters(image, filters, weights, values[size:][None])
        else:
            changed = self._apply_filters(image, filters, weights)
        change = changed.clamp(0, 1).sub_(image)
        return change[0].permute(1, 2, 0).cpu().numpy()

    def small_copy(self, frame: AnyFrame, mask: np.ndarray) -> np.ndarray:
        """Return the foreground's bounding box and its mask made small, `(32, 32, 4)` uint8."""
        box = bounding_box(mask > 0)
        small = np.zeros((SMALL_SIDE, SMALL_SIDE, 4), np.uint8)
        if box is not None:
            rows, columns = (_spread(span) for span in box)
            # Sparse rows of a large box are enough for means of cells of 8x8.
            taken = frame.rgb(box)[np.ix_(rows, columns)]
            share = mask[box][np.ix_(rows, columns)]
            size = (SMALL_SIDE, SMALL_SIDE)
            small[..., :3] = np.rint(255 * cv2.resize(taken, size, interpolation=cv2.INTER_AREA)).clip(0, 255)
            small[..., 3] = np.rint(255 * cv2.resize(share, size, interpolation=cv2.INTER_AREA)).clip(0, 255)
        return small

    def small_correction(
        self, small: np.ndarray, box: Box, window: Box, numbers: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return what `numbers` add to a `small_copy`, `(32, 32, 3)`, and its mask `(32, 32)`."""
        pixels, share = small[..., :3].astype(np.float32) / 255, small[..., 3].astype(np.float32) / 255
        return self.change_of(pixels, share, numbers, window, box), share


def _spread(span: slice) -> np.ndarray:
    """Return every n-th position of a span, at least four for each position of the small copy."""
    return np.arange(0, span.stop - span.start, max(1, (span.stop - span.start) // (4 * SMALL_SIDE)))


def sample_maps(maps: Tensor, over: Box, box: Box, size: tuple[int, int]) -> Tensor:
    """Sample the maps of one window at the positions of another window.

    Args:
        maps: `(B, F, h, w)`, bilinear between the centres of their cells, constant beyond the outer ones.
        over: Rows and columns of the picture that the maps cover.
        box: Rows and columns wanted.
        size: Height and width of the result; where it is coarser than the maps, they are averaged.

    Returns:
        `(B, F, *size)`.

    Example:
        >>> maps = torch.arange(4.0).view(1, 1, 2, 2)
        >>> sample_maps(maps, (slice(0, 2), slice(0, 2)), (slice(1, 2), slice(0, 2)), (1, 2))
        tensor([[[[2., 3.]]]])
    """
    down, across = (
        _sampling(small, cover, wanted, count, maps)
        for small, cover, wanted, count in zip(maps.shape[2:], over, box, size, strict=True)
    )
    return down @ (maps @ across.T)


def _sampling(small: int, cover: slice, wanted: slice, count: int, like: Tensor) -> Tensor:
    """Return the matrix `(count, small)` that samples one axis."""
    scale = small / (cover.stop - cover.start)
    step = (wanted.stop - wanted.start) / count
    at = (wanted.start - cover.start + (np.arange(count) + 0.5) * step) * scale - 0.5
    at = at.clip(0, small - 1)
    reach = max(1.0, step * scale)
    weights = (1 - np.abs(at[:, None] - np.arange(small)) / reach).clip(0)
    return torch.from_numpy(weights / weights.sum(1, keepdims=True)).to(like)


def _bands(frame: AnyFrame, mask: np.ndarray) -> Iterator[Box]:
    """Yield windows of a bounded number of pixels that hold foreground, aligned to the frame's chroma."""
    box = bounding_box(mask > 0)
    if box is None:
        return
    rows, columns = frame.aligned(box)
    step = frame.step[0]
    height = max(1, _BAND_PIXELS // (columns.stop - columns.start) // step) * step
    for top in range(rows.start, rows.stop, height):
        bottom = min(top + height, rows.stop)
        inside = bounding_box(mask[top:bottom] > 0)
        if inside is not None:
            lines, across = inside
            yield frame.aligned((slice(top + lines.start, top + lines.stop), across))
