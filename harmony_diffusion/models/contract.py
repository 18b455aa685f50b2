"""The contract of all registry models: their attributes and methods, and the single `forward`.

Callers read these attributes and call these methods on any model. They never use `hasattr`.
"""

from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from harmony_diffusion.errors import CheckpointError, InputError
from harmony_diffusion.models.layers import blend, clamp_unit
from harmony_diffusion.models.origin import Origin


class HarmonyModel(ModelMixin, ConfigMixin):
    """Base class of every model of the registry.

    A dense network implements `predict`. A model that predicts filters implements `predict_filters` and
    `transform` instead, and sets `predicts_filters`. Subclasses list `ModelMixin` and `ConfigMixin` as well:
    diffusers looks for these names in the module of the model when it reloads a pipeline.

    Two habits of diffusers do not apply: models return a tensor and have no `return_dict`, and
    `diffusers.AutoModel` does not know their classes. `load_model` opens any of them.

    Attributes:
        origin: Paper, code and licences.
        working_size: Side in pixels of the images the model was trained on. The thumbnail of a picture has
            this area.
        keeps_shape: The model sees thumbnails in the shape of the picture; otherwise squares, or for
            classical methods with filters (`takes_reference`) thumbnails of at most 1024 pixels a side.
        antialias: Thumbnails are made with antialiasing, also where `keeps_shape` is false.
        context: Background that the model sees on each side of the foreground, as a share of the longer side
            of the foreground; None for the whole picture.
        predicts_filters: `predict_filters`, `transform` and `apply_filters` are implemented.
        filter_upsampling: "bilinear" or "bicubic", the way in which filters that are maps are enlarged; None
            if filters are vectors or absent.
        filter_names: Names of the filters of `filter_stages`, in order; empty if it is not implemented.
        needs_frame_statistics: `apply_filters` needs the result of `frame_statistics` where its image is only
            a part of the picture.
        takes_reference: `forward` and `predict_filters` accept a weight of the background pixels.
        average_mirrored: In evaluation, the model averages the filters of a picture and of its mirror image.
    """

    origin: Origin
    working_size: int = 256
    keeps_shape: bool = True
    antialias: bool = False
    context: float | None = None
    predicts_filters: bool = False
    filter_upsampling: str | None = None
    filter_names: tuple[str, ...] = ()
    needs_frame_statistics: bool = False
    takes_reference: bool = False
    average_mirrored: bool = False

    def forward(self, composite: Tensor, mask: Tensor, reference: Tensor | None = None) -> Tensor:
        """Harmonize the foreground: clamp the predicted frame and blend it with the composite.

        Args:
            composite: `(B, 3, H, W)` in [0, 1].
            mask: 1 on the foreground, soft values allowed, `(B, 1, H, W)`.
            reference: Weight in [0, 1] of the background pixels to harmonize to, `(B, 1, H, W)`; None to
                weigh all alike. Only models with `takes_reference` accept it.

        Returns:
            `(B, 3, H, W)` in [0, 1], equal to `composite` where the mask is 0.

        Raises:
            InputError: The model takes no reference, but one is given.
        """
        if reference is not None and not self.takes_reference:
            raise InputError("reference", f"is not used by {type(self).__name__}", "Leave it out.")
        return blend(clamp_unit(self.predict_frame(composite, mask, reference)), composite, mask)

    def predict(self, composite: Tensor, mask: Tensor) -> Tensor:
        """Return the output of the official code before any clamping.

        Most networks return a whole frame, which may change the background. Three models blend it with the
        mask, as their official code does; see `predict_frame`.

        Args:
            composite: `(B, 3, H, W)` in [0, 1].
            mask: 1 on the foreground, soft values allowed, `(B, 1, H, W)`.

        Returns:
            `(B, 3, H, W)`; the docstring of each model states its range.
        """
        if not self.predicts_filters:
            raise NotImplementedError(f"{type(self).__name__} must implement `predict`.")
        return self.predict_frame(composite, mask)

    def predict_frame(self, composite: Tensor, mask: Tensor, reference: Tensor | None = None) -> Tensor:
        """Return the frame that `forward` clamps and blends; arguments as in `forward`.

        It differs from `predict` only where `predict` blends with the mask already: blending twice would
        count soft values of the mask twice. Values where the mask is 0 are not used.
        """
        if not self.predicts_filters:
            return self.predict(composite, mask)
        return self.transform(composite, self.predict_filters(composite, mask), mask)

    def predict_filters(self, composite: Tensor, mask: Tensor) -> Tensor:
        """Predict the filters of a composite, which may be a thumbnail.

        Args:
            composite: `(B, 3, H, W)` in [0, 1].
            mask: 1 on the foreground, soft values allowed, `(B, 1, H, W)`.

        Returns:
            Vectors `(B, F)` or maps `(B, F, h, w)`; the docstring of each model states their meaning.
        """
        raise NotImplementedError(f"{type(self).__name__} predicts no filters; check `predicts_filters`.")

    def transform(self, image: Tensor, filters: Tensor, mask: Tensor) -> Tensor:
        """Apply filters without clamping and without blending.

        Args:
            image: `(B, 3, H, W)` in [0, 1], any size.
            filters: As `predict_filters` returns them; maps of another size than the image are resized.
            mask: `(B, 1, H, W)`. Values of the result where it is 0 are not used and need not be computed.

        Returns:
            `(B, 3, H, W)`.
        """
        raise NotImplementedError(f"{type(self).__name__} predicts no filters; check `predicts_filters`.")

    def apply_filters(self, image: Tensor, filters: Tensor, mask: Tensor) -> Tensor:
        """Apply filters to the foreground of an image of any size.

        Args:
            image: `(B, 3, H, W)` in [0, 1].
            filters: As `predict_filters` returns them; maps of another size than the image are resized.
            mask: 1 on the foreground, soft values allowed, `(B, 1, H, W)`.

        Returns:
            `(B, 3, H, W)` in [0, 1], equal to `image` where the mask is 0.
        """
        return blend(clamp_unit(self.transform(image, filters, mask)), image, mask)

    def filter_stages(
        self,
        image: Tensor,
        filters: Tensor,
        mask: Tensor,
        statistics: Tensor | None = None,
        smooth: bool = False,
    ) -> list[Tensor]:
        """Return the image after each filter of `filter_names`, blended with the mask.

        Args:
            image: `(B, 3, H, W)` in [0, 1].
            filters: As `predict_filters` returns them.
            mask: 1 on the foreground, soft values allowed, `(B, 1, H, W)`.
            statistics: As `frame_statistics` returns them.
            smooth: Use forms of the filters that have a gradient everywhere, for training.

        Returns:
            One image `(B, 3, H, W)` for each filter.
        """
        raise NotImplementedError(f"{type(self).__name__} has no filter stages; check `filter_names`.")

    def frame_statistics(self, image: Tensor, filters: Tensor) -> Tensor:
        """Compute statistics of the whole picture for `apply_filters`.

        Args:
            image: Whole composite, `(B, 3, H, W)` in [0, 1].
            filters: As `predict_filters` returns them.

        Returns:
            `(B, S)`, the fourth argument of `apply_filters`.
        """
        raise NotImplementedError(
            f"{type(self).__name__} needs no frame statistics; check `needs_frame_statistics`."
        )

    @staticmethod
    def convert_official(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the weights of the official checkpoint.

        Args:
            state_dict: Official name -> tensor.

        Returns:
            Name in this model -> tensor.

        Raises:
            CheckpointError: A name does not belong to the official checkpoint, or there is no official one.
        """
        raise CheckpointError(
            "This model has no official checkpoint to convert. `load_model` opens the folders that "
            "`save_pretrained` writes."
        )
