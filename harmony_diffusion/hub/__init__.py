"""Publication on the Hub: a folder that opens by its id anywhere, and its upload."""

from harmony_diffusion.hub.card import Card, read_card
from harmony_diffusion.hub.saving import save_for_hub
from harmony_diffusion.training.publishing import push_to_hub

__all__ = ["Card", "push_to_hub", "read_card", "save_for_hub"]
