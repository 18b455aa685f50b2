"""Nodes for ComfyUI around the installed library `harmony-diffusion`. Importing this loads no model."""

from comfy_api.latest import ComfyExtension, io

from .nodes_compare import Compare
from .nodes_compose import Compose, Shadow
from .nodes_diffusion import HarmonizeSD2
from .nodes_harmonize import Harmonize

NODES = [Harmonize, Compose, Shadow, HarmonizeSD2, Compare]


class HarmonyDiffusionExtension(ComfyExtension):
    """The five nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Return the classes of the nodes."""
        return NODES


async def comfy_entrypoint() -> ComfyExtension:
    """Return the extension; ComfyUI calls this."""
    return HarmonyDiffusionExtension()
