import huggingface_hub.constants
import pytest
from fake_hub import FakeHub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub on the loopback address that this process uses, with an empty cache and a token."""
    server = FakeHub()
    template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in {
        "ENDPOINT": server.address,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield server
    server.close()
